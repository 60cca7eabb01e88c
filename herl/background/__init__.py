"""What runs beside the main thread.

loop.py             an event loop in a thread
worker.py           users' functions in a separate process, with time limits
worker_process.py   that process
"""
