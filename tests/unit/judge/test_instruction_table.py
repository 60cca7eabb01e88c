"""What every check of IFEval and IFBench must say: a right answer, wrong answers, and a row without its arguments."""

import asyncio
import string
import time
from dataclasses import replace

import pytest

from herl.checks.instructions import ARGUMENTS, argument_fault
from herl.data.formats import instruction_criterion
from herl.data.instructions import instruction_tasks
from herl.judge import instruction_following
from herl.judge.instruction_following import InstructionFollowingJudge, load_checkers
from herl.testing import make_rollout
from herl.types import Rubric, Task

COUNTRIES = [
    "Zimbabwe",
    "Zambia",
    "Uganda",
    "Tunisia",
    "Togo",
    "Tanzania",
    "Sudan",
    "South Sudan",
    "South Africa",
    "Somalia",
    "Sierra Leone",
    "Seychelles",
    "Senegal",
    "Sao Tome and Principe",
    "Rwanda",
    "Nigeria",
    "Niger",
    "Namibia",
    "Mozambique",
    "Morocco",
    "Mauritius",
    "Mauritania",
    "Mali",
    "Malawi",
    "Madagascar",
    "Libya",
    "Liberia",
    "Lesotho",
    "Kenya",
    "Ivory Coast",
    "Guinea-Bissau",
    "Guinea",
    "Ghana",
    "Gambia",
    "Gabon",
    "Ethiopia",
    "Eswatini",
    "Eritrea",
    "Equatorial Guinea",
    "Egypt",
    "Djibouti",
    "DR Congo",
    "Congo",
    "Comoros",
    "Chad",
    "Central African Republic",
    "Cape Verde",
    "Cameroon",
    "Burundi",
    "Burkina Faso",
    "Botswana",
    "Benin",
    "Angola",
    "Algeria",
]
CAPITALS = (
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, "
    "Amsterdam, Warsaw, London, Brussels, Kyiv, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, "
    "Chișinău, Bern, Ljubljana, Zagreb."
)
STORY = " ".join(f"“{letter}ear then it rained.”" for letter in string.ascii_uppercase)
PRODUCTS = "ProductID,Category,Brand,Price,Stock\n" + '1,Toys,"A&B",2.5,3\n' + "2,Toys,AB,2.5,3\n" * 13
STUDENTS = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + '"1"\t"Art"\t"A"\t"2"\t"90"\n' * 3
QUESTIONS = "".join(
    f"Question {n}: {'Why ' * n}art?\n(a) x\n(b) x\n(c) x\n(d) x\n(e) x\n\n" for n in range(1, 5)
)
PALINDROMES = "level radar civic rotor kayak madam refer tenet stats rotator"
LATIN = "Der Hund schläft heute lange im Garten und die Katze sitzt auf dem warmen Dach."
ENGLISH = "the dog sleeps in the garden today while the cat is sitting on the warm roof of the house."
KEYWORDS = {f"keyword{n}": word for n, word in enumerate(("art", "sun", "moon", "tree", "sea"), start=1)}
KEYWORDS_RIGHT = " ".join(f"{word}. " * n for word, n in zip(KEYWORDS.values(), (1, 2, 3, 5, 7), strict=True))
SPAN = {"prompt_to_repeat": "zero one two three four five", "n_start": 2, "n_end": 4}
REQUEST = {"prompt_to_repeat": "Write a short poem."}

TABLE = [
    # (instruction, arguments, right answers, wrong answers)
    (
        "keywords:existence",
        {"keywords": ["cat", "c++"]},
        ["A Cat likes C++."],
        ["A concatenated C++.", "cat"],
    ),
    (
        "keywords:frequency",
        {"keyword": "a.b", "frequency": 2, "relation": "at least"},
        ["a.b, A.B"],
        ["axb axb", "a.b"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 1, "relation": "less than"},
        ["Forward."],
        ["War."],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["c++", "x.y"]}, ["C and xzy."], ["I like C++."]),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
        ["#a #b"],
        ["aaaa bbbb cccc #"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "T", "let_frequency": 2, "let_relation": "less than"},
        ["to"],
        ["To it"],
    ),
    ("language:response_language", {"language": "de"}, [LATIN], [ENGLISH, "123 !!!"]),
    ("language:response_language", {"language": "zh"}, ["今天的天气很好，我们一起去公园散步。"], [ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One came. Two left.", "你好。你好吗？"],
        ["Dr. Smith slept.", "你好。"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["Dr. Smith slept."],
        ["One. Two."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo"],
        ["One\n\nTwo", "One\n***\n***\nTwo"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["one two three"],
        ["one two"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["one two", "Don't worry.", "A well-known"],
        ["one two three", "It's well-known here."],
    ),
    ("length_constraints:number_words", {"num_words": 2.0, "relation": "at least"}, ["one two"], ["don't"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"},
        ["A.\n \nHello", "\n\nOne.\n\nhello.", "One.\n\n\n\n**Hello** you"],
        ["Hello.\n\nOne.", "One.\n\nTwo.\n\nHello.", "One."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] of [city]"],
        ["[name]", "[] [ ]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Come soon."],
        ["Bye. PS", "Bye.\nP.P.S. x"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Come."],
        ["Bye.\nP.S. Come."],
    ),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, ["Bye. N.B. Come."], ["nobody"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "*Note* well:\n- a\n---\n- b"],
        ["* a", "* a\n* b\n* c", "*so* it is\n*and* so on", "---\n---"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes."],
        ["Yes.", "My answer is yes. My answer is no."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two**", "* item with *one* and ***two***"],
        ["***one***", "2*3*4 and 5*6*7", "2 * 3 * 4 * 5 * 6", "** **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part.", "num_sections": 2},
        ["Part. 1\na\nPart. 2\nb"],
        ["Part. 1\na", "Partx 1\nPartx 2", "Part. 1 a Part. 1 b"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```'],
        ["a: 1", "NaN", "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\nIt is."], ["<Joy>", "<< >>"]),
    (
        "combination:two_responses",
        {},
        ["One.\n******\nTwo."],
        ["One.", "One.\n******\nOne.", "A\n******\nB\n******\nC"],
    ),
    (
        "combination:repeat_prompt",
        REQUEST,
        ["Write a short poem.\nRoses are red."],
        ["Sure. Write a short poem.\nRoses.", "Write a short poem."],
    ),
    ("startend:end_checker", {"end_phrase": 'She said "stop"'}, ['So she said "stop"'], ["Stop, she said."]),
    ("startend:end_checker", {"end_phrase": "Good luck!"}, ['"So good luck!"'], ["Good luck! Bye."]),
    ("startend:quotation", {}, ['"Hello there."', "“Hello there.”"], ['Hello "there"', '""', '"  "']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NO WAY"],
        ["no WAY", "DON'T go"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["DON'T go"],
        ["NO WAY"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, LATIN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.capitalize(), LATIN.lower()]),
    ("punctuation:no_comma", {}, ["No comma here."], ["A comma, here.", "逗号，在这里"]),
    (
        "count:word_count_range",
        {"min_words": 2, "max_words": 3},
        ["one two", "one two three", "It's a well-known man."[:18]],
        ["one", "a b c d", "don't"],
    ),
    ("count:unique_word_count", {"N": 3}, ["one two three"], ["one One “one” – two *", "one two - ..."]),
    (
        "count:conjunctions",
        {"small_n": 3},
        ["you and I, or we but not they"],
        ["And so, and and,", "and but"],
    ),
    (
        "count:person_names",
        {"N": 2},
        ["Mia met Leo.", "Mia's and Leo's"],
        ["Miami is Available to Leonardo.", "Mia and Mia"],
    ),
    ("count:numbers", {"N": 2}, ["1 and 2", "10-12", "3.14 of 1,000"], ["1", "1, 2 and 3", "1,000"]),
    ("count:punctuation", {}, ["What?! Yes, no: maybe; so! Why? Yes."], ["Yes, no: maybe; so! Why? Yes."]),
    ("count:punctuation", {}, ["Really‽ Yes, no: maybe; so! Why? Yes."], ["All."]),
    ("count:words_japanese", {"N": 3}, ["one two 三 four - five 六"], ["one two three four"]),
    (
        "count:pronouns",
        {"N": 3},
        ["I'm sure you're his.", "Everyone saw us; nobody cared."],
        ["I saw it.", "The hem shed."],
    ),
    ("count:keywords_multiple", KEYWORDS, [KEYWORDS_RIGHT], [KEYWORDS_RIGHT.replace("art", "start"), "art"]),
    ("ratio:sentence_type", {}, ["It is. It was. Is it?"], ["It is. It was.", "It is. Is it?", "Just this"]),
    ("ratio:sentence_balance", {}, ["It is. Is it? It is!"], ["It is. Is it?", "Just this"]),
    (
        "ratio:overlap",
        {"reference_text": "one two three four five", "percentage": 100},
        ["One two, three four five."],
        ["five four three two one", "one two three x y"],
    ),
    (
        "ratio:sentence_words",
        {},
        ["Cats nap. Dogs bay. Owls fly."],
        ["Cat. Cat. Cat.", "Cats nap. Dogs bark. Owls fly.", "Cats nap. Dogs bay."],
    ),
    ("words:alphabet", {}, ["“Any big cat” – dozing.", "Yes, zebras are big."], ["Any cat barks.", "123"]),
    ("words:vowel", {}, ["A cat sits on."], ["A cute cat sits on."]),
    ("words:consonants", {}, ["Strong – bright lamps"], ["Strong sea", "- -"]),
    ("words:palindrome", {}, [PALINDROMES], ["level radar", "12321 " * 10, "noon " * 10]),
    ("words:prime_lengths", {}, ["“Go” – and didn’t… stops", "The cat"], ["Four", "- -"]),
    ("words:repeats", {"small_n": 2}, ["a b a b"], ["so “so” so,"]),
    ("words:odd_even_syllables", {}, ["“cat” water – dog"], ["cat dog"]),
    ("words:last_first", {}, ["I like “tea.” Tea is hot."], ["I like tea. Hot is tea."]),
    (
        "words:paragraph_last_first",
        {},
        ["Dogs, they love dogs.\n\nCats. Do love cats"],
        ["Dogs love cats.", "Dogs love dogs.\nCats sleep."],
    ),
    ("words:no_consecutive", {}, ["“big” “cats” - do run"], ["big bad cats"]),
    (
        "words:keywords_specific_position",
        {"keyword": "target", "n": 2, "m": 3},
        ["One. Alpha, beta Target gamma."],
        ["Alpha, beta target gamma.", "One. Alpha, target beta gamma."],
    ),
    (
        "words:words_position",
        {"keyword": "whisper"},
        ["A whisper came, then a second whisper again.", "A WHISPER, a whisper away"],
        ["A whisper came again.", "Whisper a whisper", "whisper", "..."],
    ),
    (
        "sentence:alliteration_increment",
        {},
        ["One cat came. Big bad bears run.", "We go. Big bears run."],
        ["Big bad bears run. Cats came and dogs did.", "Big bears. Bad cats."],
    ),
    (
        "sentence:keyword",
        {"word": "eat", "N": 2},
        ["One. They eat it."],
        ["Eat. One.", "One. They eaten beat."],
    ),
    ("sentence:increment", {"small_n": 1}, ["One. Two – words."], ["One. One.", "One two. One."]),
    (
        "format:parentheses",
        {},
        ["(a [b {c (d [e] d) c} b] a)"],
        ["(((((a)", "(a [b {c (d) c} b] a)", "((((( ] )"],
    ),
    (
        "format:quotes",
        {},
        ['He said, "I heard \'she cried "no" twice\' there."', "“a ‘b “c” b’ a”"],
        ['"It\'s" "it\'s"', "\"a 'b' c\""],
    ),
    (
        "format:options",
        {"options": "red, orange, or blue"},
        ["Orange.\n", "blue"],
        ["range", "red, blue", "red because"],
    ),
    ("format:options", {"options": "a), b), c), d)"}, ["b)\n"], ["b) because", "e)"]),
    ("format:options", {"options": "I know or I don't know"}, ["I don’t know."], ["I do"]),
    ("format:newline", {}, ["one\n\n- two\nthree."], ["one two", "a b\n \n"]),
    ("format:emoji", {}, ["Hi there. 😀 Bye! 🇫🇷", "Hi 👩‍🚀. Bye 👍🏽."], ["Hi there. Bye! 😀", "Hi."]),
    ("format:line_indent", {}, ["a\n\n\n b\n\n  c"], ["a\nb", " a\nb", "a"]),
    (
        "format:quote_unquote",
        {},
        ['"Yes" means agreement.', "“Yes” is one, “no” another."],
        ['"Yes", "no" are words.', 'He says "yes".'],
    ),
    ("format:list", {"sep": "-"}, ["- one\n- two"], ["well-known and up-to-date", "- one\n---"]),
    ("format:list", {"sep": "!?!?"}, ["!?!? one\n!?!? two"], ["!?!? one", "one !?!? two !?!?"]),
    (
        "format:thesis",
        {},
        ["<em>Cats rule.</em> Because they do.", "<i>Yes.</i> So."],
        ["<em></em>x", "<em>Yes.</em>", "*Yes.* So"],
    ),
    (
        "format:sub-bullets",
        {},
        ["* **One**\n  - a well-known fact\n* Two\n  - b\n  - c"],
        ["No bullets.", "* One - a\n* Two - b", "* One\n* Two\n  - b"],
    ),
    (
        "format:no_bullets_bullets",
        {},
        ["One is. Two is.\n\n* a\n\n* b\n", "One is.\n\nTwo is.\n* a\n* b"],
        ["One is.\n* a\n* b", "One! Two!\n* a\n* b", "One is. Two is.\n* a", "* a\n* b\nOne is. Two is."],
    ),
    (
        "format:title_case",
        {},
        ["The Lord of the Rings", "Don't Go Into a Cold House", "NASA Is Big"],
        ["Every word is big", "EVERY WORD IS BIG", "the End"],
    ),
    (
        "format:output_template",
        {},
        ["My Answer: yes.\nMy Conclusion: so.\nFuture Outlook: good."],
        [
            "My Conclusion: a My Answer: b Future Outlook: c",
            "My Answer: My Conclusion: Future Outlook:",
            "yes",
        ],
    ),
    ("format:no_whitespace", {}, ["no-space"], ["a b", "a\nb"]),
    ("custom:multiples", {}, ["14, 21, 28, 35, 42, 49"], ["7, 14, 21, 28, 35, 42, 49", "10, 14"]),
    (
        "custom:mcq_count_length",
        {},
        [QUESTIONS, QUESTIONS.replace("Question 1", "Question")],
        [QUESTIONS.replace("(e) x\n", ""), "Here.\n" + QUESTIONS, "Question 1"],
    ),
    (
        "custom:reverse_newline",
        {},
        ["\n".join(COUNTRIES)],
        ["\n".join(COUNTRIES[::-1]), "Zimbabwe\n" * 54, ", ".join(COUNTRIES)],
    ),
    (
        "custom:word_reverse",
        {},
        ["US the of symbol the is eagle bald The."],
        ["The bald eagle is the symbol."],
    ),
    ("custom:character_reverse", {}, ["elgae dlab eht si tI"], ["The bald eagle"]),
    ("custom:sentence_alphabet", {}, [STORY], [STORY.replace("“B", "“C"), "And."]),
    (
        "custom:european_capitals_sort",
        {},
        [CAPITALS, CAPITALS.replace(" Kyiv,", "")],
        [CAPITALS.replace("Oslo, ", ""), CAPITALS.replace("Oslo, Tallinn", "Tallinn, Oslo")],
    ),
    (
        "custom:csv_city",
        {},
        ["ID, Country, City, Year, Count\n" + "1, F, P, 2, 3\n" * 7 + "\n"],
        [
            "ID,Country,City,Year,Count\n" + "1,F,P,2,3\n" * 6,
            "ID,Country,City,Year,Count\n" + "1,F,P,2\n" * 7,
        ],
    ),
    (
        "custom:csv_special_character",
        {},
        [PRODUCTS, PRODUCTS.replace('"A&B"', '"A, B"') + "\n"],
        [PRODUCTS.replace("A&B", "AB"), PRODUCTS.replace("2,Toys,AB", "2,Toys"), PRODUCTS + "3,a,b,1,2\n"],
    ),
    (
        "custom:csv_quotes",
        {},
        [STUDENTS, STUDENTS + "\n"],
        [STUDENTS.replace('"A"', "A"), STUDENTS.replace('"A"', ""), STUDENTS.replace("\t", ",")],
    ),
    (
        "custom:date_format_list",
        {},
        ["1796-04-12, 1815-06-18"],
        ["1796-00-12", "1796-04-00", "1815-02-29", "18 June 1815", "1915-06-18"],
    ),
    (
        "repeat:repeat_change",
        REQUEST,
        ["Compose a short poem."],
        ["Write a short poem.", "Write  a short poem.", "write a short poem.", "Compose a long poem."],
    ),
    (
        "repeat:repeat_simple",
        {},
        ["Only output this sentence here, ignore all other requests.\n"],
        ["Only output this sentence here."],
    ),
    ("repeat:repeat_span", SPAN, ["two three four", "Two Three Four\n"], ["two three", "one two three four"]),
    ("repeat:repeat_span", SPAN | {"n_start": 0, "n_end": 1}, ["zero one"], ["zero", "one two"]),
]
NEEDS_DATA = {"words:start_verb": {}, "ratio:stop_words": {"percentage": 50}}
"""Checks that need a part-of-speech tagger or a list of stop words, which no package on PyPI brings."""

ONE_OF_EACH = {row[0]: row[1] for row in TABLE} | NEEDS_DATA


def verdict(instruction, kwargs, answer, **options):
    rubric = Rubric(criteria=(instruction_criterion(instruction, kwargs),))
    task = Task(id="task", messages=({"role": "user", "content": "?"},), rubric=rubric)
    [found] = asyncio.run(JUDGES[options.get("strict", True)].judge(task, make_rollout(answer))).verdicts
    return found


JUDGES = {strict: InstructionFollowingJudge(strict=strict) for strict in (True, False)}


def test_every_kind_of_both_benchmarks_is_in_the_table():
    kinds = {instruction for instruction, *_ in TABLE} | set(NEEDS_DATA)
    assert kinds == set(ARGUMENTS) == set(load_checkers())
    assert len(kinds) == 25 + 58


@pytest.mark.parametrize(("instruction", "kwargs", "right", "wrong"), TABLE)
def test_a_right_answer_is_met_and_a_wrong_one_is_not(instruction, kwargs, right, wrong):
    for strict in (True, False):
        assert [(text, verdict(instruction, kwargs, text, strict=strict).met) for text in right] == [
            (text, True) for text in right
        ]
    assert [(text[:80], verdict(instruction, kwargs, text).met) for text in wrong] == [
        (text[:80], False) for text in wrong
    ]


@pytest.mark.parametrize(("instruction", "kwargs"), ONE_OF_EACH.items())
def test_without_an_argument_nothing_is_drawn_and_the_check_abstains(instruction, kwargs):
    assert argument_fault(instruction, kwargs) is None
    assert argument_fault(instruction, dict.fromkeys(("other", "N1")) | kwargs) is None  # null is missing
    for name in kwargs:
        for rest in (
            {k: v for k, v in kwargs.items() if k != name},
            kwargs | {name: None},
            kwargs | {name: []},
        ):
            found = verdict(instruction, rest, "Some words are here.")
            assert found.met is None
            assert f"kwargs.{name}: " in found.reason
    assert "kwargs.surplus: " in (argument_fault(instruction, kwargs | {"surplus": 1}) or "")


@pytest.mark.parametrize("instruction", NEEDS_DATA)
def test_missing_data_of_the_machine_abstains(instruction, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    assert "LookupError" in verdict(instruction, NEEDS_DATA[instruction], "Run home.").reason


@pytest.mark.parametrize(
    ("instruction", "kwargs", "fault"),
    [
        ("keywords:exists", {}, "Did you mean 'keywords:existence'?"),
        ("keywords:existence", {"keywords": "fish"}, "a list of texts"),
        ("keywords:existence", {"keywords": ["fish", " "]}, "a list of texts"),
        (
            "keywords:frequency",
            {"keyword": "a", "frequency": -1, "relation": "at least"},
            "at least 0, got -1",
        ),
        ("keywords:frequency", {"keyword": "a", "frequency": 1.5, "relation": "at least"}, "got 1.5"),
        ("keywords:frequency", {"keyword": "a", "frequency": True, "relation": "at least"}, "got True"),
        (
            "keywords:frequency",
            {"keyword": "a", "frequency": 1, "relation": "more than"},
            "at least, less than",
        ),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "one char",
        ),
        ("language:response_language", {"language": "xx"}, "a language code"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "kwargs.nth_paragraph: expected at most 2, got 3",
        ),
        ("count:word_count_range", {"min_words": 9, "max_words": 3}, "expected at least min_words=9, got 3"),
        ("count:words_japanese", {"N": 0}, "at least 1, got 0"),
        ("ratio:stop_words", {"percentage": 101}, "from 0 to 100"),
        ("repeat:repeat_span", SPAN | {"n_start": 6, "n_end": 7}, "kwargs.n_start"),
        ("repeat:repeat_span", SPAN | {"n_end": 1}, "kwargs.n_end"),
        ("format:newline", {"N": 1}, "takes no arguments"),
    ],
)
def test_arguments_that_no_answer_could_fit_are_faults(instruction, kwargs, fault):
    assert fault in (argument_fault(instruction, kwargs) or "")
    assert verdict(instruction, kwargs, "An answer.").met is None


def test_generated_prompts_have_the_arguments_of_their_instructions():
    for task in (*instruction_tasks("train", 100), *instruction_tasks("heldout", 40)):
        for criterion in task.rubric.criteria:
            assert argument_fault(criterion.check["instruction_id"], criterion.check["kwargs"]) is None


def test_an_answer_that_breaks_its_check_fulfills_nothing(monkeypatch):
    def broken(answer):
        raise IndexError(answer)

    monkeypatch.setitem(instruction_following.FIXES, "format:newline", broken)
    for undesirable in (False, True):
        criterion = instruction_criterion("format:newline", {})
        rubric = Rubric(criteria=(replace(criterion, undesirable=undesirable),))
        task = Task(id="task", messages=({"role": "user", "content": "?"},), rubric=rubric)
        [found] = asyncio.run(JUDGES[True].judge(task, make_rollout("x"))).verdicts
        assert found.met is undesirable
        assert rubric.fulfilled([found]) == {criterion.id: False}
        assert "the answer breaks its check" in found.reason


@pytest.mark.parametrize("filler", [" ", "<", "*", "[", "p. ", "<i>"])
def test_no_answer_takes_long(filler):
    text = filler * (20_000 // len(filler)) + "x"
    for instruction, kwargs in ONE_OF_EACH.items():
        began = time.process_time()
        verdict(instruction, kwargs, text)
        assert time.process_time() - began < 2, instruction  # a quadratic pattern takes minutes
