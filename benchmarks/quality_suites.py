"""What the accuracy benchmark measures: data sets, and the variants of the ablation, the learning
curves and the study of teachers, as plain data.

A variant is the suite's student under another name and with other settings. Those of other data,
views or teachers get a run folder of their own, which shares teachers and cached answers with the
suite's. In the study of teachers it is the suite's teacher with other settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bert_kd.errors import UserError, nearest

Overrides = tuple[str, ...]
"""`section.key=value` each."""


@dataclass(frozen=True)
class Variant:
    """One row of an ablation, a learning curve or a study of teachers; `beside` names the row that
    it is compared with.
    """

    name: str
    overrides: Overrides
    part: str
    """Which table or curve it belongs to."""
    beside: str | None = None
    x: float | None = None
    """Its place on a learning curve."""
    share_of_train: float | None = None
    """Learns from this share of train's rows alone, without views and pool; None: as configured."""


@dataclass(frozen=True)
class Suite:
    """One data set: its configuration, its folder, and the sets on which systems are compared."""

    name: str
    config: str
    """File in scripts/configs."""
    folder: str | None
    """Folder of the data; None: bundled."""
    sets: tuple[str, ...] = ("test",)
    """The first is the one that figures show. A name that is no split is a file in the folder whose
    rows are all among those of test.
    """
    notes: tuple[str, ...] = ()
    ablation: tuple[Variant, ...] = ()
    curve: tuple[Variant, ...] = ()
    teachers: tuple[Variant, ...] = ()
    limits: str = ""
    """What the learning curves show to hold its student back; written under them."""


STUDENT = "students.base"
"""The student whose settings the variants change."""
TEMPERATURES = (1, 2, 4, 8)
HARD_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def parts(on: Mapping[str, Overrides], off: Mapping[str, Overrides]) -> list[Variant]:
    """Return variants that add one part after the other; `on` and `off` are the overrides that
    switch each part, in the order in which they are added.
    """
    found: list[Variant] = []
    names = list(on)
    for count in range(len(names) + 1):
        added, lacking = names[:count], names[count:]
        overrides = [line for name in added for line in on[name]]
        overrides += [line for name in lacking for line in off[name]]
        previous = found[-1].name if found else None
        name = f"+ {names[count - 1]}" if count else "gold labels alone"
        found.append(Variant(name, tuple(overrides), "parts", previous))
    return found


BARE = ("augment.views=0", "data.transfer=[]", "teacher.ensemble=1")
"""No views, no pool, one teacher: what the comparison of losses is made with."""


def loss(
    soft: str,
    hard_weight: float,
    soft_weight: float,
    temperature: int | None = None,
    standardise: bool = False,
) -> Overrides:
    """Return the overrides that give the student this loss; the temperature where it has one."""
    overrides = (
        f"{STUDENT}.loss.standardise={str(standardise).lower()}",
        f"{STUDENT}.loss.soft={soft}",
        f"{STUDENT}.loss.hard_weight={hard_weight:g}",
        f"{STUDENT}.loss.soft_weight={soft_weight:g}",
    )
    return overrides + ((f"{STUDENT}.loss.temperature={temperature}",) if temperature else ())


NO_DISTILLATION = loss("mse", 1, 0)
SQUARED_ERROR = loss("mse", 0.1, 1)
DISTILLATION = loss("kl", 0.1, 1, 2)


def losses() -> list[Variant]:
    """Return MSE against KL at several temperatures, and the weight of the cross-entropy."""
    found = [Variant("MSE", (*BARE, *SQUARED_ERROR), "losses")]
    for temperature in TEMPERATURES:
        overrides = (*BARE, *loss("kl", 0.1, 1, temperature))
        found.append(Variant(f"KL, T = {temperature}", overrides, "losses", "MSE"))
    first = None
    for weight in HARD_WEIGHTS:
        name = f"{weight:g} CE + {1 - weight:g} KL"
        overrides = (*BARE, *loss("kl", weight, 1 - weight, 2))
        found.append(Variant(name, overrides, "weight of CE", first))
        first = first or name
    return found


def other_terms(classes: int) -> list[Variant]:
    """Return the soft terms beyond the basic ones, and a teacher that is calibrated first; of two
    classes those that say something there (`student/guards.py`).
    """
    terms = {"KL": DISTILLATION, "decoupled KD": loss("dkd", 0.1, 1, 2)}
    if classes > 2:
        terms["correlation (DIST)"] = loss("dist", 0.1, 1, 2)
        terms["KL of standardised logits"] = loss("kl", 0.1, 1, 2, standardise=True)
    terms["KL, calibrated teacher"] = (*DISTILLATION, "logits.calibrate=true")
    first = next(iter(terms))
    return [
        Variant(name, (*BARE, *overrides), "other terms", None if name == first else first)
        for name, overrides in terms.items()
    ]


def ablation(views: int | str, classes: int, pool: tuple[str, ...] = ()) -> tuple[Variant, ...]:
    """Return the ablation of a suite of so many `classes` with `views` a row ("auto": as the
    configuration's default has it), or with these pools (files beside its folder).

    Where there is a pool, views stand beside the steps: what they bring in place of it.
    """
    on = {
        "distillation": DISTILLATION,
        "embedding start": (f"{STUDENT}.embedding.start=teacher",),
        "views": (f"augment.views={views}",),
        "pool": (f"data.transfer={[*pool]}",),
        "ensemble of 3": ("teacher.ensemble=3",),
    }
    off = {
        "distillation": NO_DISTILLATION,
        "embedding start": (f"{STUDENT}.embedding.start=random",),
        "views": ("augment.views=0",),
        "pool": ("data.transfer=[]",),
        "ensemble of 3": ("teacher.ensemble=1",),
    }
    left_out = "views" if pool else "pool"
    steps = parts(
        {name: lines for name, lines in on.items() if name != left_out},
        {name: lines for name, lines in off.items() if name != left_out},
    )
    if pool:
        instead = (*on["distillation"], *on["embedding start"], *BARE, *on["views"])
        steps.append(Variant("views, no pool", instead, "parts", "+ embedding start"))
    return (*steps, *losses(), *other_terms(classes))


def curves(
    epochs: tuple[int, ...], units: tuple[int, ...] = (32, 64, 128, 256)
) -> tuple[Variant, ...]:
    """Return the learning curves in rows of train, in epochs and in units a direction."""
    found = [
        Variant(f"{share:.0%} of train", (), "data", x=share, share_of_train=share)
        for share in (0.05, 0.1, 0.25, 0.5, 1.0)
    ]
    found += [
        Variant(
            f"{count} epochs" if count > 1 else "1 epoch",
            (f"{STUDENT}.training.epochs={count}",),
            "epochs",
            x=count,
        )
        for count in epochs
    ]
    found += [
        Variant(f"{count} units", (f"{STUDENT}.model.hidden_size={count}",), "size", x=count)
        for count in units
    ]
    return tuple(found)


CONFIGURED = "as configured"
"""The row that variants of a teacher are compared with: one teacher of the suite's own settings."""


def _teachers(part: str, by_name: Mapping[str, Overrides]) -> tuple[Variant, ...]:
    return tuple(Variant(name, overrides, part, CONFIGURED) for name, overrides in by_name.items())


LAYERS = _teachers(
    "trained layers",
    {"last layer": ("teacher.unfreeze.last_layers=1",)}
    | {f"last {n} layers": (f"teacher.unfreeze.last_layers={n}",) for n in (2, 4, 6)}
    | {"all, and embeddings": ("teacher.unfreeze.last_layers=all",)},
)
POOLING = _teachers(
    "pooling",
    {"mean pooling": ("teacher.pooling=mean",), "first token": ("teacher.pooling=cls",)},
)
ENSEMBLE_OF_3 = _teachers("ensemble", {"ensemble of 3": ("teacher.ensemble=3",)})


def teachers(learning_rates: tuple[float, float], epochs: tuple[int, int]) -> tuple[Variant, ...]:
    """Return the variants of a suite's teacher; given are half and double its learning rate and its
    epochs.
    """
    steps = {
        f"learning rate {rate:g}": (f"teacher.learning_rate={rate:g}",) for rate in learning_rates
    }
    steps |= {f"layer decay {decay}": (f"teacher.layer_decay={decay}",) for decay in (0.9, 0.8)}
    steps |= {f"warm-up {share:g}": (f"teacher.warmup={share:g}",) for share in (0.0, 0.2)}
    steps |= {f"{count} epochs": (f"teacher.epochs={count}",) for count in epochs}
    regularisation: dict[str, Overrides] = {
        "label smoothing 0.1": ("teacher.label_smoothing=0.1",),
        "R-Drop 1": ("teacher.r_drop=1",),
    }
    return (
        *LAYERS,
        *_teachers("optimisation", steps),
        *_teachers("regularisation", regularisation),
        *POOLING,
        *ENSEMBLE_OF_3,
    )


MOVIES = "../unlabelled_movie_sentences/pool.tsv.gz"
CHOSEN_ON_VALIDATION = (
    "Epochs and the settings of controls are chosen on validation: accuracies there flatter all."
)
NO_CLEAN_FIGURES = (
    "The rule of which epoch is kept was found by looking at this test set too, so that students' "
    "accuracies on it are no clean figures. All other settings were chosen on validation."
)

_ALL = (
    Suite(
        "sst2",
        "sst2.toml",
        "sst2",
        ("test", "validation"),
        (
            "validation is GLUE's, test is SST's own. " + CHOSEN_ON_VALIDATION,
            NO_CLEAN_FIGURES,
        ),
        ablation(views=2, classes=2, pool=(MOVIES,)),
        curves((1, 2, 4, 8, 16)),
        (*LAYERS, *POOLING, *ENSEMBLE_OF_3),
    ),
    Suite(
        "sst2-sentences",
        "sst2_sentences.toml",
        "sst2_sentences",
        notes=(
            "SST-2's whole sentences, without the phrases that GLUE's train has beside them; the "
            "pool is 30,000 movie sentences, the views are as many.",
            NO_CLEAN_FIGURES,
        ),
        ablation=ablation(views=4, classes=2, pool=(MOVIES,)),
    ),
    Suite(
        "trec",
        "trec.toml",
        "trec",
        ablation=ablation(views="auto", classes=6),
        curve=curves((1, 2, 4), units=(64, 128, 256)),
        teachers=teachers((1e-4, 4e-4), (3, 12)),
        limits=(
            "What limits the student: questions to learn from. With its views it has learned what "
            "it will after two epochs, in 64 units as in 256, while without them accuracy rises "
            "with each doubling of train, up to all of it. There is no pool of questions here."
        ),
    ),
    Suite(
        "mrpc",
        "mrpc.toml",
        "mrpc",
        notes=(
            "The teachers know train by heart, so that what they bring comes of its views. Answers "
            "of teachers that had not seen a row (four parts of train, each answered by a teacher "
            "of the other three; tried with teacher.pooling = cls) gave a better likelihood on "
            "validation and no better accuracy.",
        ),
        curve=curves((2, 4, 8, 16)),
        teachers=teachers((1e-4, 4e-4), (3, 10)),
        limits=(
            "What limits the student: pairs. Epochs and units beyond 64 change nothing, while "
            "accuracy rises with each doubling of train, up to all of it; a tenth of it teaches "
            "nothing but the majority class. Views of the same pairs bring two points; there is no "
            "pool of other pairs here."
        ),
    ),
    Suite(
        "helpdesk",
        "demo.toml",
        None,
        curve=curves((2, 4, 8, 16)),
        teachers=teachers((1e-4, 4e-4), (4, 16)),
        limits=(
            "What limits the student: rows. Twice its epochs or units bring nothing, while "
            "accuracy rises with each doubling of train, up to all of it."
        ),
    ),
    Suite(
        "thucnews",
        "thucnews.toml",
        "thucnews",
        notes=(
            "train holds half of the usual 180,000 headlines. There is no teacher here: the "
            "student learns from the gold labels alone, from vectors of characters where the data "
            "comes with them.",
        ),
        curve=curves((1, 2, 4, 8)),
    ),
    Suite(
        "chnsenticorp",
        "chnsenticorp.toml",
        "chnsenticorp",
        ("test", "test_unseen", "validation"),
        (
            "test_unseen is test without the texts that also stand in train. There is no teacher "
            "here: the student learns from the gold labels alone. " + CHOSEN_ON_VALIDATION,
        ),
        curve=curves((2, 4, 8, 16)),
    ),
)
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _ALL}


def suite_named(name: str) -> Suite:
    """Return the suite of this name. Raises UserError where there is none."""
    if name not in SUITES:
        raise UserError(
            f"there is no suite {name!r}{nearest(name, SUITES)}: give one of "
            f"{', '.join(SUITES)}, or all"
        )
    return SUITES[name]
