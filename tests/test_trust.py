"""Each line of the README's table of trust is held by tests."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {
    "your functions": {
        "unit/background/test_worker.py": ["test_the_late_call_abstains_and_the_others_do_not"],
    },
    "a configuration": {
        "unit/test_targets.py": [
            "test_only_what_a_component_is_may_be_named_however_it_is_reached",
            "test_an_allowed_module_does_not_lend_what_it_imports",
        ],
        "unit/cli/test_hydra_settings.py": ["test_a_file_does_not_make_hydra_run_code"],
        "unit/config/test_keys_in_settings.py": [
            "test_a_key_given_as_the_name_of_a_variable_is_refused_everywhere_and_not_repeated"
        ],
    },
    "rows": {
        "unit/judge/test_rule.py": [
            "test_only_functions_that_an_allowed_module_defines_are_called",
            "test_a_check_that_takes_too_long_abstains_with_the_cause_timeout",
        ],
        "unit/checks/test_json_text.py": ["test_a_fault_of_a_schema_is_found_without_an_answer"],
    },
    "answers": {
        "unit/judge/llm/test_prompt.py": [
            "test_an_answer_stays_inside_its_field",
            "test_no_answer_adds_control_tokens_to_the_judges_own_prompt",
        ],
        "unit/judge/test_rule.py": [
            "test_an_answer_that_breaks_its_check_fulfills_nothing",
            "test_an_answer_gains_nothing_by_making_a_function_raise",
        ],
        "unit/display/test_terminal.py": ["test_a_run_on_hostile_rows_and_answers_ends_well_and_shows_none_of_it"],
    },
    "a judge's endpoint": {
        "unit/judge/llm/test_hostile_endpoint.py": [
            "test_each_hostile_reply_abstains_with_its_cause_in_little_time_and_memory",
            "test_a_redirect_is_refused_and_no_prompt_reaches_the_other_host",
            "test_a_pause_that_the_endpoint_asks_for_is_shortened_and_told_once",
        ],
    },
    "a checkpoint": {
        "unit/models/test_checkpoint_file.py": [
            "test_metadata_cannot_run_code",
            "test_values_beside_the_tensors_cannot_run_code",
            "test_no_flipped_bit_changes_a_weight_unseen",
        ],
    },
    "a run's folder (`run=`)": {
        "unit/cli/test_main.py": [
            "test_a_run_brings_no_setting_of_the_command_itself",
            "test_what_a_run_may_not_decide_alone_is_typed_again",
            "test_a_run_that_this_user_started_brings_all_its_settings_until_someone_changes_them",
        ],
    },
}  # fmt: skip
"""First cell of a line -> file -> tests."""


def test_the_table_has_these_lines():
    section = (ROOT / "README.md").read_text().partition("## Trust")[2]
    rows = [line.split(" | ")[0].strip("| ") for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(TESTS)


@pytest.mark.parametrize("file", sorted({file for files in TESTS.values() for file in files}))
def test_the_tests_exist(file):
    tree = ast.parse((ROOT / "tests" / file).read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for files in TESTS.values() for name in files.get(file, ())} <= found
