"""CSV, TSV and JSON lines: what is read, and what is refused with file, line and remedy."""

import gzip
import re

import pytest
from source_texts import jsonl

from bert_kd.data.tables import BATCH_ROWS, Columns
from bert_kd.data.text_files import read_csv, read_jsonl, read_tsv
from bert_kd.errors import DataError

SINGLE = Columns("text", label="label")
PAIR = Columns("text", "text_b", "label")


def whole(batches):
    """Return texts, second texts, labels and lines of all batches."""
    texts, texts_b, labels, lines = [], [], [], []
    for batch in batches:
        texts += batch.texts
        texts_b += batch.texts_b or []
        labels += batch.labels or []
        lines += batch.lines
    return texts, texts_b, labels, lines


def refused(batches):
    with pytest.raises(DataError) as caught:
        list(batches)
    return str(caught.value)


def test_in_tsv_a_quotation_mark_is_only_a_character(write):
    path = write("train.tsv", 'text\tlabel\n"only labored gags\t0\nsays "" and ",\t1\n"\t1\n')
    texts, _, labels, lines = whole(read_tsv(path, SINGLE, None))
    assert texts == ['"only labored gags', 'says "" and ",', '"']
    assert labels == ["0", "1", "1"]
    assert lines == [2, 3, 4]


def test_in_tsv_only_a_line_feed_ends_a_line(write):
    path = write("train.tsv", "text\tlabel\r\na\u2028b\x85c\x0bd\re\t1\r\nf\x00g\t0")
    texts, _, labels, _ = whole(read_tsv(path, SINGLE, None))
    assert texts == ["a\u2028b\x85c\x0bd\re", "f\x00g"]
    assert labels == ["1", "0"]


def test_columns_are_found_by_name_in_any_place(write):
    path = write("train.tsv", "label\tid\ttext_b\ttext\n1\t7\tsecond\tfirst\n")
    assert whole(read_tsv(path, PAIR, None)) == (["first"], ["second"], ["1"], [2])


def test_blank_lines_are_skipped_but_stand_for_empty_texts_where_there_is_one_column(write):
    path = write("train.tsv", "\ntext\tlabel\na\t1\n\nb\t0\n\n")
    assert whole(read_tsv(path, SINGLE, None))[3] == [3, 5]
    for name, read in (("p.tsv", read_tsv), ("p.csv", lambda *given: read_csv(*given, ","))):
        path = write(name, "text\na\n\nb\n")
        assert whole(read(path, Columns("text"), None))[0] == ["a", "", "b"]


def test_csv_follows_rfc_4180(write):
    content = 'label,text\r\n0,"a ""quoted"", text"\r\n1,"two\r\nlines"\r\n0,it\'s "fine"\r\n'
    path = write("train.csv", content)
    texts, _, labels, lines = whole(read_csv(path, SINGLE, None, ","))
    assert texts == ['a "quoted", text', "two\r\nlines", 'it\'s "fine"']
    assert labels == ["0", "1", "0"]
    assert lines == [2, 3, 5]  # the line at which each record starts


def test_csv_with_another_delimiter_and_without_a_header(write):
    path = write("train.csv", "1;a, b\n0;c\n")
    texts, _, labels, lines = whole(read_csv(path, SINGLE, ("label", "text"), ";"))
    assert (texts, labels, lines) == (["a, b", "c"], ["1", "0"], [1, 2])


def test_a_byte_order_mark_is_no_part_of_the_first_name(write):
    path = write("train.csv", "\ufefftext,label\na,1\n")
    assert whole(read_csv(path, SINGLE, None, ","))[0] == ["a"]


def test_json_lines_keep_types_and_skip_blank_lines(write):
    path = write(
        "train.jsonl",
        '{"text": "a\\nb \\ud83d\\ude00", "label": 1, "more": [1]}\n\n'
        '{"label": "x", "text": null}\n',
    )
    texts, _, labels, lines = whole(read_jsonl(path, SINGLE))
    assert texts == ["a\nb 😀", ""]
    assert labels == [1, "x"]
    assert lines == [1, 3]


def test_files_are_read_in_batches_and_gzip_alike(write):
    rows = "".join(f"text {number}\t{number % 2}\n" for number in range(BATCH_ROWS + 5))
    plain, packed = (
        write("a.tsv", f"text\tlabel\n{rows}"),
        write("b.tsv.gz", f"text\tlabel\n{rows}"),
    )
    batches = list(read_tsv(packed, SINGLE, None))
    assert [len(batch) for batch in batches] == [BATCH_ROWS, 5]
    assert whole(batches) == whole(read_tsv(plain, SINGLE, None))


def test_a_missing_column_is_named_with_the_nearest(write):
    path = write("train.tsv", "sentence\tlabels\na\t1\n")
    message = refused(read_tsv(path, SINGLE, None))
    assert f"{path}, line 1: there is no column 'text'" in message
    assert "sentence, labels" in message and "data.text" in message
    message = refused(read_tsv(path, Columns("sentence", label="label"), None))
    assert "did you mean 'labels'?" in message and "data.label" in message


def test_a_wrong_delimiter_is_suspected(write):
    path = write("train.csv", "text;label\na;1\n")
    assert "is the delimiter really ','" in refused(read_csv(path, SINGLE, None, ","))


def test_a_column_that_is_there_twice_is_refused(write):
    path = write("train.tsv", "text\ttext\tlabel\na\tb\t1\n")
    assert "'text' is there twice" in refused(read_tsv(path, SINGLE, None))


def test_a_header_line_beside_given_columns_is_refused(write):
    path = write("train.tsv", "text\tlabel\na\t1\n")
    message = refused(read_tsv(path, SINGLE, ("text", "label")))
    assert f"{path}, line 1" in message and "leave data.columns out" in message


def test_ragged_rows_are_refused_with_what_was_found_and_expected(write):
    path = write("train.tsv", "text\tlabel\na\t1\nb\tc\t0\n")
    message = refused(read_tsv(path, SINGLE, None))
    assert (
        f"{path}, line 3: 3 columns found, 2 expected" in message and "replace the tabs" in message
    )
    path = write("train.csv", 'text,label\n"x\ny",1\na, b,0\n')
    message = refused(read_csv(path, SINGLE, None, ","))
    assert f"{path}, line 4: 3 columns found, 2 expected" in message
    assert "in quotation marks" in message


@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz"])
def test_bytes_that_are_not_utf8_are_refused_with_their_line(write, name):
    path = write(name, b"text\tlabel\ngood\t1\ncaf\xe9\t0\n")
    message = refused(read_tsv(path, SINGLE, None))
    assert f"{path}, line 3: not UTF-8 (byte 0xe9)" in message and "iconv" in message


def test_bad_bytes_far_into_a_file_are_found_in_csv_and_json_lines_too(write):
    good = b"text,1\n" * 20_000
    path = write("train.csv", b"text,label\n" + good + b"\xff,1\n")
    assert f"{path}, line 20002: not UTF-8" in refused(read_csv(path, SINGLE, None, ","))
    path = write("train.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 1}\n')
    assert f"{path}, line 2: not UTF-8" in refused(read_jsonl(path, SINGLE))


def test_an_unclosed_quotation_mark_is_refused_at_its_record(write):
    path = write("train.csv", 'text,label\na,1\n"b,0\nc,1\n')
    message = refused(read_csv(path, SINGLE, None, ","))
    assert f"{path}, line 3: not CSV" in message and 'data.format = "tsv"' in message


def test_a_quotation_mark_that_nothing_closes_does_not_fill_the_memory(write, monkeypatch):
    monkeypatch.setattr("bert_kd.data.text_files.LONGEST_FIELD", 1000)
    path = write("train.csv", 'text,label\na,1\n"b,0\n' + "c,1\n" * 1000)
    assert f"{path}, line 3: not CSV (field larger" in refused(read_csv(path, SINGLE, None, ","))


def test_json_that_is_broken_or_no_object_is_refused_with_its_line(write):
    path = write("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": \n')
    assert f"{path}, line 2: not JSON" in refused(read_jsonl(path, SINGLE))
    path = write("train.jsonl", '{"text": "a", "label": 1}\n["b", 1]\n')
    assert f"{path}, line 2: a JSON list, not an object" in refused(read_jsonl(path, SINGLE))
    path = write("train.jsonl", "[" * 100_000 + "\n")
    assert f"{path}, line 1: not JSON" in refused(read_jsonl(path, SINGLE))


def test_a_missing_key_is_refused_with_its_line(write):
    path = write("train.jsonl", '{"text": "a", "label": 1}\n{"txt": "b", "label": 1}\n')
    message = refused(read_jsonl(path, SINGLE))
    assert f"{path}, line 2: there is no key 'text' (did you mean 'txt'?)" in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": 12, "label": 1}', "'text' holds 12 (int), which is not a text"),
        ('{"text": ["a"], "label": 1}', "'text' holds ['a'] (list)"),
        ('{"text": "a", "label": Infinity}', "'label' holds inf (float)"),
        ('{"text": "a", "label": {}}', "'label' holds {} (dict)"),
        ('{"text": "a", "label": [1]}', "'label' holds [1] (list)"),
        ('{"text": "a \\ud800", "label": 1}', "holds \\ud800, half of a character"),
    ],
)
def test_wrong_types_are_refused_with_their_line(write, row, words):
    path = write("train.jsonl", '{"text": "good", "label": 1}\n' + row + "\n")
    message = refused(read_jsonl(path, SINGLE))
    assert f"{path}, line 2" in message and words in message


def test_an_empty_file_is_refused(write):
    for content in ("", "\n\n"):
        assert "is empty" in refused(read_tsv(write("train.tsv", content), SINGLE, None))


@pytest.mark.parametrize("kind", ["no gzip at all", "cut short"])
def test_a_broken_archive_is_refused(folder, kind):
    path = folder / "train.tsv.gz"
    packed = gzip.compress(b"text\tlabel\n" + b"some text\t1\n" * 1000)
    path.write_bytes(b"text\tlabel\n" if kind == "no gzip at all" else packed[: len(packed) // 2])
    assert re.search("is not a whole gzip file", refused(read_tsv(path, SINGLE, None)))


@pytest.mark.parametrize("name", ["train.tsv", "train.csv", "train.jsonl", "train.tsv.gz"])
def test_a_file_that_the_system_refuses_is_told_with_the_reason(write, name, closed):
    path = closed(write(name, "text\tlabel\na\t1\n"))
    read = {
        "train.csv": lambda: read_csv(path, SINGLE, None, ","),
        "train.jsonl": lambda: read_jsonl(path, SINGLE),
    }.get(name, lambda: read_tsv(path, SINGLE, None))
    assert f"{path} cannot be read (Permission denied): make it readable" in refused(read())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_told_by_its_byte_order_mark(write, encoding):
    path = write("train.tsv", "\ufefftext\tlabel\né\t1\n".encode(encoding))
    assert "iconv -f UTF-16 -t UTF-8" in refused(read_tsv(path, SINGLE, None))
    path = write("train.tsv", b"text\tlabel\ncaf\xe9\t1\n")
    assert "iconv -f WINDOWS-1252 -t UTF-8" in refused(read_tsv(path, SINGLE, None))


@pytest.mark.parametrize(
    "record",
    [
        '"word thing", "a"',
        '"word thing",  "a, b"',
        '"word thing", "a\nb"',
        ' "word thing",a',
        'word thing, "a" and more',
    ],
)
def test_a_space_before_a_quotation_mark_is_refused_with_its_line(write, record):
    path = write("train.csv", f"text,label\nfine,a\n{record}\nfine,b\n")
    message = refused(read_csv(path, SINGLE, None, ","))
    assert f"{path}, line 3: a field begins with a space before its quotation mark" in message
    assert "remove the space after the delimiter ','" in message


def test_a_quoted_text_may_begin_with_a_space_and_a_quotation_mark(write):
    path = write("train.csv", 'label,more,text\na, b," ""Yes"", she said"\na, b, it\'s "fine"\n')
    texts, _, labels, _ = whole(read_csv(path, SINGLE, None, ","))
    assert texts == [' "Yes", she said', ' it\'s "fine"']
    assert labels == ["a", "a"]


def test_lines_that_end_in_a_carriage_return_alone_are_suspected_in_a_short_message(write):
    path = write("train.tsv", "text\tlabel\r" + "".join(f"text {at}\t1\r" for at in range(5000)))
    message = refused(read_tsv(path, SINGLE, None))
    assert "there is no column 'label'" in message and "\r" not in message
    assert r"found: text, label\rtext 0, 1\rtext 1," in message and r"1\rtext 18, …." in message
    assert "do its lines end in a carriage return alone?" in message
    assert len(message) < 1000
    path = write("train.tsv", "x" * 5000 + "\tlabel\na\t1\n")
    assert f"found: {'x' * 39}…, label." in refused(read_tsv(path, SINGLE, None))
    path = write("train.jsonl", jsonl([{f"key {at}": 1 for at in range(1000)}]))
    assert "key 19, …." in refused(read_jsonl(path, SINGLE))


def test_two_settings_may_not_name_one_column(write):
    same = Columns("text", "text", "label")
    told = "data.text and data.text_b both name the column 'text'"
    assert told in refused(read_tsv(write("a.tsv", "text\tlabel\na\t1\n"), same, None))
    assert told in refused(read_jsonl(write("a.jsonl", jsonl([{"text": "a", "label": 1}])), same))
