"""Every gin file parses, finalizes and follows the papers."""

import csv
import pathlib

import pytest

import gin
from nfnets_tf.config import Configuration
from nfnets_tf.data.tfrecords import Record
from tests.support.datasets import store_with_tfds, write_dataset

ROOT = pathlib.Path(__file__).parents[2]
POINTS = ROOT / "nfnets_tf" / "scaling" / "paper"
# Jobs that do not train, and the bindings that they need.
JOBS = {
  "gin/check_shards.gin": ["DATA_DIR = 'x'"],
  "gin/data_server.gin": ["ADDRESS = 'a:1'"],
  "gin/export.gin": ["CHECKPOINT = {run!r}"],
  "gin/fit_laws.gin": ["TABLE = 'x'"],
  "gin/fit_sparsity_law.gin": ["TABLE = 'x'"],
  "gin/paper_figures.gin": [],
  "gin/prepare_csv.gin": [
    "DATA_DIR = 'x'",
    "CSV = {csv!r}",
    "IMAGES = {images!r}",
  ],
  "gin/prepare_digits.gin": ["DATA_DIR = 'x'"],
  "gin/prepare_folder.gin": ["DATA_DIR = 'x'", "IMAGES = {images!r}"],
  "gin/prepare_tfds.gin": ["DATA_DIR = 'x'", "TFDS = {tfds!r}"],
}
SMOKE = "gin/overlays/smoke.gin"
SERVICE = "gin/overlays/data_service.gin"
FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("gin/*.gin"))
RUNS = [path for path in FILES if path not in JOBS]
OVERLAYS = sorted(
  p.relative_to(ROOT).as_posix() for p in ROOT.glob("gin/overlays/*.gin")
)
EVERY = sorted(p for p in (ROOT / "gin").rglob("*.gin"))
PAPER = ("F0", "F1", "F3", "F3+", "F7", "F7+")
SHARDS = "gin/finetune_shards.gin"
FOLDER, IMAGENET = "gin/finetune_folder.gin", "gin/finetune_imagenet.gin"
BUDGETS = (0.25, 0.5, 1, 2, 4, 8)


def gin_file(variant):
  return f"gin/{variant.lower().replace('+', 'plus')}_jft.gin"


def job(variant, epochs=8):
  params = [f"EPOCHS = {epochs}"]
  return Configuration([gin_file(variant)], params).build_job()


def rows(name):
  with (POINTS / name).open() as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder of two classes, for the run that finds out about its data."""
  root = tmp_path_factory.mktemp("images")
  for name in ("cat", "dog"):
    (root / "photos" / name).mkdir(parents=True)
    for i in range(640):
      (root / "photos" / name / f"{i}.jpg").touch()
  write_dataset(
    str(root / "shards"),
    {"train": [Record(b"", 0, "", "", "")] * 1152, "heldout": []},
    num_shards={"train": 1, "heldout": 1},
    class_names=["cat", "dog"],
  )
  return str(root / "photos")


def configure(run, *files, images):
  given = {
    FOLDER: [f"DATA_DIR = {images!r}"],
    SHARDS: [f"DATA_DIR = '{images}/../shards'"],
  }.get(run, [])
  if SERVICE in files:
    given += ["DATA_SERVERS = ['a:1', 'b:1']"]
  return Configuration([run, *files], given)


@pytest.mark.parametrize("run", RUNS)
def test_run_parses_builds_and_finalizes(run, images):
  configuration = configure(run, images=images)
  assert configuration.build_job().schedule.total_steps > 0
  gin.finalize()
  with gin.unlock_config():
    gin.clear_config()


@pytest.mark.parametrize("path", JOBS)
def test_job_parses_builds_and_plans(path, images, tmp_path):
  csv_file = tmp_path / "images.csv"
  csv_file.write_text("path,label\na.png,0\n")
  places = {"images": images, "csv": str(csv_file), "run": str(tmp_path)}
  run = Configuration(["gin/quickstart.gin"]).text
  (tmp_path / "config.gin").write_text(run)
  if "TFDS" in str(JOBS[path]):
    places["tfds"] = store_with_tfds(tmp_path)
  given = [param.format(**places) for param in JOBS[path]]
  assert Configuration([path], given).build_job().plan()


def applies_to(overlay, run):
  """Repeated augmentation is for runs whose learning rate no table gives."""
  return "repeated" not in overlay or "jft" not in run


PAIRS = {(run, SMOKE) for run in RUNS}
PAIRS |= {(run, o) for run in (gin_file("F7+"), SHARDS) for o in OVERLAYS}


@pytest.mark.parametrize(
  "run, overlay", sorted(pair for pair in PAIRS if applies_to(*pair[::-1]))
)
def test_runs_take_overlays(run, overlay, images):
  """Every run with the smoke overlay, and one of each kind with all."""
  assert (
    configure(run, overlay, images=images).build_job().schedule.total_steps > 0
  )


def test_erasing_comes_after_all_augmentation(images):
  overlays = [
    "gin/overlays/augmentation.gin",
    "gin/overlays/random_erasing.gin",
  ]
  for files in (overlays, overlays[::-1]):
    split = (
      configure(SHARDS, *files, images=images).build_job().data.train_split
    )
    transforms = [type(t).__name__ for t in split.augmentation.transforms]
    assert transforms == ["RandAugment", "RandomErasing"]


def test_cifar10_is_a_folder(images):
  built = configure(FOLDER, "gin/data/cifar10.gin", images=images).build_job()
  assert built.data.train_split.image_shape() == (32, 32, 3)
  transforms = [type(t).__name__ for t in built.data.train_split.transforms]
  assert transforms == ["Shift", "Flip", "Resize"]


def test_every_model_of_the_paper_has_a_run():
  for variant in PAPER:
    assert job(variant).model.variant == variant
  other_runs = {"gin/quickstart.gin", FOLDER, SHARDS, IMAGENET}
  assert set(RUNS) == {*map(gin_file, PAPER), *other_runs}


@pytest.mark.parametrize("variant", PAPER)
def test_pretraining_follows_the_scaling_paper(variant):
  """Sections 2 of the scaling paper, A.1 and A.5 of the NFNet paper."""
  built = job(variant)
  assert built.data.batch_size == 4096
  assert (
    built.data.num_examples == 4_000_000_000
    and built.data.num_classes == 30_000
  )
  assert built.schedule.total_steps == 7_812_500  # 8 epochs
  assert built.data.train_split.image_shape() == (224, 224, 3)
  assert built.data.heldout_split.image_shape() == (256, 256, 3)
  assert built.devices.policy == "mixed_bfloat16"
  assert built.devices.strategy.__name__ == "tpu"
  optimizer = built.optimization.optimizer(
    learning_rate=built.optimization.learning_rate
  ).get_config()
  assert (optimizer["momentum"], optimizer["nesterov"]) == (0.9, True)
  assert optimizer["weight_decay"] == 1e-6
  assert (optimizer["clipping"], optimizer["clipping_eps"]) == (0.01, 1e-3)
  transforms = [type(t).__name__ for t in built.data.train_split.transforms]
  assert transforms == ["InceptionCrop", "Flip"]


def test_no_average_and_no_regularization_in_pre_training():
  statements = Configuration([gin_file("F7+")]).statements
  assert statements["classifier.Classifier.ema_decay"] == "None"
  assert statements["nfnet.NFNet.drop_rate"] == "0.0"
  assert statements["nfnet.NFNet.stochdepth_rate"] == "0.0"


@pytest.mark.parametrize("epochs", BUDGETS)
def test_budgets(epochs):
  built = job("F3", epochs)
  assert built.schedule.total_steps == round(epochs * 4e9 / 4096)


@pytest.mark.parametrize("row", rows("fig3_optimal_learning_rate.csv"), ids=str)
def test_peak_rates_equal_figure_3(row):
  built = job(row["model"], row["epochs"])
  assert built.optimization.learning_rate.warmup_target == float(
    row["learning_rate"]
  )


def test_our_rates_are_between_the_published_ones():
  def peaks(variant):
    return [
      job(variant, epochs).optimization.learning_rate.warmup_target
      for epochs in BUDGETS
    ]

  for small, ours, large in (
    ("F0", "F1", "F3"),
    ("F3", "F3+", "F7+"),
    ("F3", "F7", "F7+"),
  ):
    for a, b, c in zip(peaks(small), peaks(ours), peaks(large)):
      assert a >= b >= c


@pytest.mark.parametrize("row", rows("fig2_heldout_loss.csv"), ids=str)
def test_headers_state_the_values_of_figure_2(row):
  if row["epochs"] == "8":
    text = (ROOT / gin_file(row["model"])).read_text()
    assert row["heldout_loss"] in text and row["tpu_v4_core_hours"] in text


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.name)
def test_files_are_short_and_have_a_header(path):
  lines = path.read_text().splitlines()
  assert lines[0].startswith("# ") and len(lines) <= 100
  assert "REQUIRED" not in path.read_text()


@pytest.mark.parametrize("variant", PAPER)
def test_finetuning_follows_the_papers(variant):
  """Section 2 of the scaling paper; A.4 and A.5 of the NFNet paper."""
  configuration = Configuration([IMAGENET], [f"VARIANT = {variant!r}"])
  built = configuration.build_job()
  assert built.model.variant == variant
  assert built.schedule.total_steps == round(50 * 1_281_167 / 2_048)
  assert built.data.batch_size == 2_048 and built.data.num_classes == 1_000
  assert built.data.train_split.image_shape() == (384, 384, 3)
  assert built.data.heldout_split.image_shape() == (480, 480, 3)
  rate = built.optimization.learning_rate
  assert (rate.warmup_target, rate.warmup_steps) == (0.1, 5_000)
  assert rate.decay_steps == built.schedule.total_steps - 5_000
  assert (built.optimization.sam.rho, built.optimization.sam.scope) == (
    0.05,
    "replica",
  )
  assert (
    built.optimization.sam.ascent_fraction == 1.0
    and built.optimization.sam.every == 1
  )
  assert (
    built.model.init_weights.path and not built.model.init_weights.keep_head
  )
  optimizer = built.optimization.optimizer(learning_rate=0.1).get_config()
  assert optimizer["weight_decay"] == 1e-5 and optimizer["clipping"] == 0.01
  statements = configuration.statements
  assert statements["nfnet.NFNet.drop_rate"] == "0.25"
  assert statements["nfnet.NFNet.stochdepth_rate"] == "0.1"
  assert statements["classifier.Classifier.ema_decay"] == "0.9999"


@pytest.mark.parametrize("run", [IMAGENET, "gin/quickstart.gin"])
def test_repeated_augmentation_costs_the_same(run):
  """The scaling paper's footnote 4."""
  plain = Configuration([run]).build_job()
  overlay = "gin/overlays/repeated_augmentation.gin"
  repeated = Configuration([run, overlay]).build_job()
  assert repeated.data.train_split.augmentation.multiplicity == 4
  assert repeated.data.heldout_split.augmentation.multiplicity == 1
  assert repeated.schedule.total_steps == plain.schedule.total_steps
  assert repeated.data.batch_size == plain.data.batch_size


def test_folder_binds_its_classes_and_examples(images):
  built = configure(FOLDER, images=images).build_job()
  assert built.data.num_classes == 2
  assert built.data.num_examples == 2 * (640 - 64)
  assert built.data.train_split.directory == built.data.prepare.directory
  assert (
    built.model.init_weights.describe() == "from scratch"
    and built.optimization.sam is None
  )
  built = configure(FOLDER, "gin/overlays/sam.gin", images=images).build_job()
  assert built.optimization.sam.rho == 0.05
