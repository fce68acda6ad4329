from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from melanoma import config
from melanoma.catalog.resolve import Rules
from melanoma.errors import InputError
from melanoma.evaluation.config import EvaluateConfig
from melanoma.nightly.config import NightlyConfig
from melanoma.scoring.config import DeliveryConfig, ScoreConfig
from melanoma.training.config import TrainConfig
from melanoma.training.studies.config import AblationConfig, RecipesConfig, TuneConfig

CONFIGS = Path(__file__).parent.parent / "configs"
TRAIN = "catalog: c.parquet\nout: out/bundle\n"
SCORE = "archive: s3://archive\nout: s3://out\nbundle: s3://bundle\n"


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusal(model: type[Any], path: str | None, *overrides: str, **values: Any) -> str:
    """The sentence that `config.load` refuses with."""
    with pytest.raises(InputError) as caught:
        config.load(model, path, list(overrides), **values)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert caught.value.exit_code == 2
    return sentence


MODELS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "student-plain": TrainConfig,
    "student-dropout": TrainConfig,
    "student-augmentation": TrainConfig,
    "student": TrainConfig,
    "ablation": AblationConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "reference": TrainConfig,
    "recipes": RecipesConfig,
    "tune": TuneConfig,
    "deliver": DeliveryConfig,
    "nightly": NightlyConfig,
    "isic9": Rules,
}


@pytest.mark.parametrize(("name", "model"), MODELS.items())
def test_the_configurations_of_the_repository_are_valid(name: str, model: type[Any]) -> None:
    assert isinstance(config.load(model, str(CONFIGS / f"{name}.yaml")), model)


def test_there_is_a_model_for_every_configuration_of_the_repository() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(MODELS)


def test_overrides_go_over_the_file_and_values_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, TRAIN + "epochs: 3\nseed: 1\nnetwork: {name: student}\n")
    overrides = [
        "epochs=5",
        "seed=2",
        "network.width=8",
        "balance.sampling=0.25",
        "learning_rate=1e-3",
        "out=s3://b/k=v",
    ]
    loaded = config.load(TrainConfig, path, overrides, seed=3, image_size=None)
    assert (loaded.epochs, loaded.seed, loaded.image_size) == (5, 3, TrainConfig.model_fields["image_size"].default)
    assert (loaded.network.name, loaded.network.width) == ("student", 8)
    assert (loaded.balance.sampling, loaded.learning_rate, loaded.out) == (0.25, 0.001, "s3://b/k=v")


def test_a_configuration_may_come_from_overrides_alone() -> None:
    overrides = ["catalog=c", "out=b", "augmentation=[{operation: zoom, min_factor: 1.0, max_factor: 1.2}]"]
    loaded = config.load(TrainConfig, None, overrides)
    assert loaded.augmentation[0].model_extra == {"min_factor": 1.0, "max_factor": 1.2}


def test_a_date_may_be_written_as_a_date(tmp_path: Path) -> None:
    assert config.load(ScoreConfig, write(tmp_path, SCORE + "run_date: 2026-11-20\n")).run_date == "2026-11-20"
    assert config.load(ScoreConfig, write(tmp_path, SCORE), ["run_date=2026-11-20"]).run_date == "2026-11-20"
    assert config.load(ScoreConfig, write(tmp_path, SCORE), run_date="2026-11-20").run_date == "2026-11-20"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch: 3", "Unknown key 'epoch' in FILE: did you mean 'epochs'?"),
        ("network: {widht: 3}", "Unknown key 'network.widht' in FILE: did you mean 'width'?"),
        (
            "balance: {colour: 3}",
            "Unknown key 'balance.colour' in FILE: the keys there are sampling, loss_weights, by_source, copies.",
        ),
        (
            "augmentation: [{operation: zoom}, {probability: 1}]",
            "The key 'augmentation.1.operation' is missing in FILE.",
        ),
        (
            "augmentation: [{operation: flip_left_right, probability: 2}]",
            "The key 'augmentation.0.probability' in FILE is 2: input should be less than or equal to 1.",
        ),
        (
            "augmentation: [{operation: flip_left_right, probability: 0}]",
            "The key 'augmentation.0.probability' in FILE is 0: input should be greater than 0.",
        ),
        (
            "network: {name: residual, weights: imagenet}",
            (
                "The key 'network' in FILE is {'name': 'residual', 'weights': 'imagenet'}: weights, frozen_epochs and "
                "fine_tuning_rate are for pretrained networks, not residual."
            ),
        ),
        ("epochs: 0", "The key 'epochs' in FILE is 0: input should be greater than 0."),
        ("epochs: many", "The key 'epochs' in FILE is 'many': input should be a valid integer"),
        ("network: big", "The key 'network' in FILE is 'big': input should be a valid dictionary"),
        ("learning_rate: .inf", "The key 'learning_rate' in FILE is inf: input should be a finite number."),
        ("learning_rate: .nan", "The key 'learning_rate' in FILE is nan: input should be"),
        ("network: {dropout: .nan}", "The key 'network.dropout' in FILE is nan: input should be"),
        ("seed: 4294967296", "The key 'seed' in FILE is 4294967296: input should be less than 4294967296."),
        ("run_name: ../../x", "The key 'run_name' in FILE is '../../x': string should match pattern"),
        ("1: 2", "The key '1' in FILE is 1: keys should be strings."),
        ("aws_secret_access_key: x", "Unknown key 'aws_secret_access_key' in FILE: "),
        ("network: {width: [", "The configuration FILE is not valid YAML in line 4."),
        ("out: a: b", "The configuration FILE is not valid YAML in line 3."),
        ("run_name: 2026-13-45", "The configuration FILE is not valid YAML: month must be in 1..12."),
        ("run_name: !!python/object/apply:os.getcwd []", "The configuration FILE is not valid YAML in line 3."),
        ("run_name: " + "[" * 5000, "The configuration FILE is not valid YAML"),
        ("augmentation: &a [*a]", "The key 'augmentation.0' in FILE is "),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, f"{TRAIN}{text}\n")
    assert refusal(TrainConfig, path).startswith(sentence.replace("FILE", path))


def test_the_first_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "catalog: c.parquet\n")
    assert refusal(TrainConfig, path) == f"The key 'out' is missing in {path}."
    assert refusal(TrainConfig, None) == "The key 'catalog' is missing."
    assert refusal(TrainConfig, write(tmp_path, "# nothing\n")) == f"The key 'catalog' is missing in {path}."


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epochs", "Override 'epochs' is not of the form key=value, such as network.width=32."),
        ("=3", "Override '=3' is not of the form key=value"),
        ("network.width=[", "The value of override 'network.width=[' is not valid YAML."),
        ("run_name=2026-13-45", "The value of override 'run_name=2026-13-45' is not valid YAML."),
        ("seed=0x_", "The value of override 'seed=0x_' is not valid YAML."),
        ("run_name=" + "[" * 5000, "The value of override 'run_name=[["),
        ("catalog.x=1", "Override 'catalog.x=1': 'catalog' is a value, not a group of keys."),
        ("network.widht=1", "Unknown key 'network.widht' in FILE: did you mean 'width'?"),
        ("out=", "The key 'out' in FILE is None: input should be a valid string."),
    ],
)
def test_a_mistake_in_an_override_is_one_sentence(tmp_path: Path, override: str, sentence: str) -> None:
    path = write(tmp_path, TRAIN)
    assert refusal(TrainConfig, path, override).startswith(sentence.replace("FILE", path))


@pytest.mark.parametrize("run_date", ["2026-13-45", "20.11.2026", "2026-11-20T00:00:00", "yesterday"])
def test_a_day_that_is_none_is_refused(tmp_path: Path, run_date: str) -> None:
    assert "run_date" in refusal(ScoreConfig, write(tmp_path, SCORE), run_date=run_date)


@pytest.mark.parametrize("run_id", ["a/b", "a b", "", "a\n", "ä", "x=1"])
def test_a_run_id_is_part_of_a_path(tmp_path: Path, run_id: str) -> None:
    assert refusal(ScoreConfig, write(tmp_path, SCORE), run_id=run_id).startswith("The key 'run_id'")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    assert refusal(TrainConfig, missing) == f"The configuration {missing} does not exist."
    assert refusal(TrainConfig, str(tmp_path)) == f"The configuration {tmp_path} cannot be read (IsADirectoryError)."
    for content, words in {
        b"- a\n- b\n": "is not a mapping of keys to values.",
        b"just text": "is not a mapping of keys to values.",
        b"\xff\xfe\xfa": "cannot be read (UnicodeDecodeError).",
        b"a: \0": "is not valid YAML.",
    }.items():
        path = write(tmp_path, content)
        assert refusal(TrainConfig, path) == f"The configuration {path} {words}"


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    loaded = config.load(TrainConfig, write(tmp_path, TRAIN))
    with pytest.raises(ValueError, match="frozen"):
        loaded.epochs = 1


# Strings of the configurations that name something else. `config` is a YAML file that is only read: it comes with the
# working directory of a submitted job.
NO_PLACES = {
    *("config", "overrides", "name", "run_name", "licence", "mlflow", "experiment"),  # of trainings and studies
    *("sources", "by", "leave_out"),  # of evaluations and studies: names in a catalog
    *("run_id", "run_date", "metrics_host", "webhook", "smtp_host", "mail_from", "mail_to"),  # of scoring
    *("label", "over", "to", "image_ids", "reason"),  # of rules of repair
}


def test_every_string_of_a_configuration_is_a_place_or_known_not_to_be_one() -> None:
    def strings(annotation: Any, marks: tuple[Any, ...]) -> bool:
        """Whether there may be a string that nothing marks as a place."""
        if any(isinstance(mark, config.PlaceKind) for mark in marks):
            return False
        if get_origin(annotation) is Annotated:
            return strings(get_args(annotation)[0], get_args(annotation)[1:])
        if get_origin(annotation) in (Literal, dict):
            return False
        return annotation is str or any(strings(each, ()) for each in get_args(annotation))

    models = [*set(MODELS.values())]
    for model in models:  # grows while it is walked
        for name, field in model.model_fields.items():
            models += [inner for inner in config._models(field.annotation) if inner not in models]
            if name not in NO_PLACES:
                assert not strings(field.annotation, tuple(field.metadata)), f"{model.__name__}.{name}"


def test_a_place_of_any_depth_is_found() -> None:
    class Inner(config.Model):
        files: dict[str, tuple[config.Place, ...]]
        word: str = "word"

    class Outer(config.Model):
        inner: Inner | None = None
        pair: tuple[int, config.LocalPlace] = (0, "pair")
        either: config.Place | int = 3
        fine: tuple[config.Place, ...] = ("/a", "s3://b", "file:///c")

    found = list(config.relative_places(Outer(inner=Inner(files={"a": ("x", "/y")}), either="z")))
    assert [(key, place) for key, place, _ in found] == [("inner.files.a", "x"), ("pair", "pair"), ("either", "z")]
    assert [kind.on_stores for _, _, kind in found] == [True, False, True]


def test_values_may_have_dotted_keys(tmp_path: Path) -> None:
    path = write(tmp_path, TRAIN + "network: {name: student, width: 8}\n")
    values: dict[str, Any] = {"network.width": 4, "epochs": 2}
    loaded = config.load(TrainConfig, path, **values)
    assert (loaded.network.name, loaded.network.width, loaded.epochs) == ("student", 4, 2)


@pytest.mark.parametrize("value", ["swordfish", "swordfish\n", "swordfish\r\n", "\ufeffswordfish\n", "\nswordfish"])
def test_a_line_end_is_no_part_of_a_secret(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MELANOMA_SECRET_OF_A_TEST", value)
    assert config.secret("MELANOMA_SECRET_OF_A_TEST") == "swordfish"
    monkeypatch.delenv("MELANOMA_SECRET_OF_A_TEST")
    assert config.secret("MELANOMA_SECRET_OF_A_TEST") == ""
