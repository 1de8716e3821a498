"""`views.parquet`: what is in it, what is counted, and what a killed run leaves."""

import numpy as np
import pytest
from source_texts import tsv

from bert_kd.config import AugmentConfig
from bert_kd.data import views as making
from bert_kd.data.augment import KINDS
from bert_kd.data.keys import row_keys
from bert_kd.data.prepare import load_prepared
from bert_kd.data.rows import Rows, read_rows
from bert_kd.data.views import Proposals, describe_views, write_views

WORDS = "a the good poor film plot cast score , dull bright tale of and with".split()
MASK = Proposals(mask_token="[MASK]", identity="test")


def sentences(count, seed=0):
    source = np.random.default_rng(seed)
    return [" ".join(source.choice(WORDS, source.integers(3, 12))) for _ in range(count)]


@pytest.fixture
def made(write, prepared):
    """A prepared source of 300 training rows."""
    texts = sentences(360)
    rows = [(text, number % 2) for number, text in enumerate(texts)]
    write("train.tsv", tsv(rows[:300]))
    write("validation.tsv", tsv(rows[300:330]))
    write("test.tsv", tsv(rows[330:]))
    write("pool.tsv", tsv([(text,) for text in sentences(50, seed=9)], header=("text",)))
    return prepared(transfer=("pool.tsv",))[0]


def viewed(made):
    """How many rows views are made of."""
    return sum(made.rows[split] for split in making.VIEWED)


def test_views_stand_in_a_split_of_their_own_and_the_others_stay(run, made):
    before = {name: run.split(name).read_bytes() for name in made.rows}
    after = write_views(run, made, AugmentConfig(views=2), MASK)
    rows = read_rows(run.split("views"))
    assert after.rows == made.rows | {"views": len(rows)}
    assert {name: after.fingerprints[name] for name in made.rows} == made.fingerprints
    assert {name: run.split(name).read_bytes() for name in made.rows} == before
    assert load_prepared(run) == after
    assert set(rows.labels.tolist()) == {-1}
    assert rows.keys.tolist() == row_keys(rows.texts).tolist()
    assert all(text.strip() for text in rows.texts)
    assert not run.view_parts.exists()


def test_views_repeat_no_text_of_any_split_and_all_are_counted(run, made):
    after = write_views(run, made, AugmentConfig(views=6, ngram=1.0), MASK)
    rows = read_rows(run.split("views"))
    given = {text for name in made.rows for text in read_rows(run.split(name)).texts}
    assert len(set(rows.texts)) == len(rows) and not set(rows.texts) & given
    counts = after.report["views"]
    assert counts["wanted"] == 6 * viewed(made)
    assert counts["repeats"] > 0 and counts["known"] > 0
    assert counts["wanted"] == len(rows) + sum(
        counts[key] for key in ("repeats", "known", "unchanged")
    )
    for kind, bit in KINDS.items():
        assert counts["kinds"][kind] == int((rows.views & bit > 0).sum())
    assert f"{len(rows):,} rows of {counts['wanted']:,} wanted" in describe_views(after)


def test_views_that_vary_another_text_in_case_or_spaces_are_dropped(run, made, monkeypatch):
    """One view stands in test but for its case, one is another view but for its spaces."""
    held = read_rows(run.split("test")).texts[0]
    texts = ["one of its own", "One  of its own", held.upper()]

    def make(rows, due, config, tools):
        count = len(texts)
        views = np.full(count, KINDS["ngram"], dtype=np.int16)
        return Rows(row_keys(texts), texts, None, np.full(count, -1), views)

    monkeypatch.setattr(making, "make_views", make)
    monkeypatch.setattr(making, "PART_ROWS", 1000)
    after = write_views(run, made, AugmentConfig(views=1, maximum=300), MASK)
    assert read_rows(run.split("views")).texts == texts[:1]
    counts = after.report["views"]
    assert (counts["repeats"], counts["known"]) == (1, 1)


def test_the_maximum_is_shared_out_evenly(run, made):
    keys = read_rows(run.split("train")).keys
    wanted = making._wanted(keys, len(keys), 9.0, AugmentConfig(views=4, maximum=700))
    assert wanted.sum() == 700 and set(wanted.tolist()) == {2, 3}
    assert set(making._wanted(keys, len(keys), 9.0, AugmentConfig(views=4)).tolist()) == {4}
    few = making._wanted(keys, len(keys), 9.0, AugmentConfig(views=4, maximum=5))
    assert few.sum() == 5 and few.max() == 1


def test_long_texts_get_fewer_views_where_no_number_is_asked_for(run, made):
    keys = read_rows(run.split("train")).keys
    assert set(making._wanted(keys, len(keys), 9.0, AugmentConfig()).tolist()) == {
        making.AUTO_VIEWS
    }
    long = making.AUTO_UNITS / len(keys) / 3  # three views of each row are all there is room for
    assert making._wanted(keys, len(keys), long, AugmentConfig()).sum() == 3 * len(keys)
    assert set(making._wanted(keys, len(keys), long, AugmentConfig(views=4)).tolist()) == {4}


def test_transfer_texts_get_the_views_that_train_leaves_room_for(run, made):
    keys = read_rows(run.split("train")).keys
    wanted = making._wanted(keys, 100, 9.0, AugmentConfig(views=4, maximum=700))
    assert set(wanted[:100].tolist()) == {4} and wanted[100:].sum() == 300
    assert making._wanted(keys, 100, 9.0, AugmentConfig(views=4, maximum=300))[100:].sum() == 0

    few = AugmentConfig(views=2, maximum=600)
    alone = write_views(run, made, few, MASK).report["views"]["wanted"]
    both = write_views(run, made, AugmentConfig(views=2), MASK).report["views"]["wanted"]
    assert (alone, both) == (600, 600 + 2 * made.rows["transfer"])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(run, made):
    config = AugmentConfig(views=2)
    first = write_views(run, made, config, MASK)
    content = run.split("views").read_bytes()
    assert write_views(run, made, config, MASK).fingerprints == first.fingerprints
    assert run.split("views").read_bytes() == content
    other = write_views(run, made, AugmentConfig(views=2, seed=5), MASK)
    assert other.fingerprints["views"] != first.fingerprints["views"]


@pytest.fixture
def stopped(run, made, monkeypatch):
    """Make views in small parts, stopped at the third; return their settings, fingerprint when
    made at one go, and the rows that views are made of from then on.
    """
    monkeypatch.setattr(making, "PART_ROWS", 64)
    config = AugmentConfig(views=2)
    whole = write_views(run, made, config, MASK).fingerprints["views"]
    real, asked = making.make_views, []

    def counted(*given):
        asked.append(len(given[0]))
        if len(asked) == 3 and not stops:
            stops.append(True)
            raise KeyboardInterrupt
        return real(*given)

    stops = []
    monkeypatch.setattr(making, "make_views", counted)
    with pytest.raises(KeyboardInterrupt):
        write_views(run, made, config, MASK)
    assert len(list(run.view_parts.rglob("*.parquet"))) == 2
    asked.clear()
    return config, whole, asked


def test_a_stopped_run_goes_on_where_it_was(run, made, stopped):
    config, whole, asked = stopped
    assert write_views(run, made, config, MASK).fingerprints["views"] == whole
    assert sum(asked) == viewed(made) - 2 * 64
    assert not run.view_parts.exists()


@pytest.mark.parametrize(
    ("views", "identity"), [(1, MASK.identity), (2, "another model")], ids=["settings", "model"]
)
def test_parts_of_another_job_are_not_taken(run, made, stopped, views, identity):
    asked = stopped[2]
    other = Proposals(mask_token="[MASK]", identity=identity)
    write_views(run, made, AugmentConfig(views=views), other)
    assert sum(asked) == viewed(made)
    assert not run.view_parts.exists()


def test_pairs_have_views_with_both_sides(run, write, prepared):
    firsts, seconds = sentences(200), sentences(200, seed=4)
    rows = [(a, b, n % 2) for n, (a, b) in enumerate(zip(firsts, seconds, strict=True))]
    write("train.tsv", tsv(rows, header=("text", "other", "label")))
    made, _ = prepared(text_b="other")
    after = write_views(run, made, AugmentConfig(views=2, mix=0.5), MASK)
    views = read_rows(run.split("views"))
    assert views.keys.tolist() == row_keys(views.texts, views.texts_b).tolist()
    assert all(text.strip() for text in (*views.texts, *views.texts_b))
    kinds = after.report["views"]["kinds"]
    assert kinds["ngram"] == 0 and kinds["mix"] > 50 and kinds["swap"] > 20


def test_chinese_texts_have_views_without_spaces(run, write, prepared):
    source = np.random.default_rng(0)
    texts = ["".join(source.choice(list("房间很大小好早餐，服务"), 12)) for _ in range(120)]
    write("train.tsv", tsv([(text, n % 2) for n, text in enumerate(texts)]))
    made, _ = prepared()
    write_views(run, made, AugmentConfig(views=2), MASK)
    views = read_rows(run.split("views"))
    assert len(views) > 100 and not any(" " in text for text in views.texts)


def test_preparing_again_removes_views(run, made, prepared):
    write_views(run, made, AugmentConfig(views=1), MASK)
    again, _ = prepared(transfer=("pool.tsv",))
    assert "views" not in again.rows and not run.split("views").exists()
