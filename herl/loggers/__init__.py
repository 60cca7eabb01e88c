"""Loggers beside Lightning's, and tables for all that show them. Selected by `logger` in a configuration."""

from herl.loggers.csv_file import CsvFile
from herl.loggers.tables import Table, TableLogger, write_picture, write_table
from herl.loggers.trackio import TrackioLogger

__all__ = ["CsvFile", "Table", "TableLogger", "TrackioLogger", "write_picture", "write_table"]
