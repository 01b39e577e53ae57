"""Every mistake in a configuration ends in one sentence that mends it."""

import logging
import re

import pytest

from nfnets_tf.config import Configuration, Launch
from nfnets_tf.errors import UserError

RUN = "gin/quickstart.gin"


def refused(*params, files=(RUN,), build=False):
  with pytest.raises(UserError) as error:
    configuration = Configuration(list(files), list(params))
    if build:
      configuration.build_job()
  message = str(error.value)
  assert "\n" not in message
  return message


def test_misspelled_file():
  message = refused(files=["gin/quickstrt.gin"])
  assert "'gin/quickstrt.gin' does not exist" in message
  assert "did you mean 'gin/quickstart.gin'?" in message


def test_no_file():
  assert "--gin_file=gin/quickstart.gin" in refused(files=[])


def test_misspelled_parameter_even_of_a_class_that_takes_kwargs():
  message = refused("nfnet.NFNet.num_clases = 3")
  assert "--gin_param='nfnet.NFNet.num_clases = 3'" in message
  assert "did you mean 'num_classes'?" in message


def test_misspelled_parameter_in_a_file_is_located(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text(
    "from __gin__ import dynamic_registration\n"
    f"from nfnets_tf.train import run_config\ninclude '{RUN}'\n\n"
    "run_config.Schedule:\n"
    "  log_evry = 10\n"
  )
  message = refused(files=[str(path)])
  assert f"{path}, line 6: " in message
  assert "did you mean 'log_every'?" in message


@pytest.mark.parametrize(
  "binding, meant",
  [
    ("nfnet.NFNett.num_classes = 3", "nfnet.NFNet"),
    ("nfnett.NFNet.num_classes = 3", "nfnet.NFNet"),
    ("STRATEGY = @distribution.on_device", "distribution.one_device"),
  ],
)
def test_misspelled_name(binding, meant):
  message = refused(binding)
  assert binding in message and f"did you mean {meant!r}?" in message


def test_misspelled_macro_that_is_set():
  message = refused("EPOCH = 3")
  assert "EPOCH is set, but nothing uses it" in message
  assert "did you mean 'EPOCHS'?" in message


@pytest.mark.parametrize(
  "binding, words",
  [
    ("sam.SAM.rho = 0.1", "--gin_file=gin/overlays/sam.gin does"),
    ("randaugment.RandAugment.layers = 1", "gin/overlays/augmentation.gin"),
    ("train/augmentation.MixUp.alpha = 0.5", "uses augmentation.MixUp"),
    (
      "pipeline.Split.split = 'x'",
      "heldout/pipeline.Split.split and train/pipeline.Split.split",
    ),
  ],
)
def test_flag_that_binds_what_nothing_uses(binding, words):
  message = refused(binding)
  assert "nothing uses" in message and words in message


def test_flag_that_uses_what_another_flag_binds():
  sam = "run_config.OptimizationConfig.sam = @sam.SAM()"
  Configuration([RUN], ["sam.SAM.rho = 0.1", sam])
  Configuration([RUN, "gin/overlays/sam.gin"], ["sam.SAM.rho = 0.1"])


def test_misspelled_scope():
  message = refused("hedlout/pipeline.Split.split = 'validation'")
  assert "no reference has the scope 'hedlout'" in message
  assert "did you mean 'heldout'?" in message
  # What a reference without a scope is evaluated in is its caller's scope.
  Configuration([RUN], ["train/augmentation.Augmentation.multiplicity = 2"])


@pytest.mark.parametrize(
  "bindings, words",
  [
    (["EPOCHS = %EPOCHS"], "EPOCHS is set to itself"),
    (["EPOCHS = %SEED", "SEED = %EPOCHS"], "is set to itself, by way of %"),
    (["EPOCHS = (1, %EPOCHS)"], "EPOCHS is set to itself"),
    (["EPOCHS = @schedules.steps_for_epochs()"], "a value is built of itself"),
  ],
  ids=str,
)
def test_values_of_themselves(bindings, words):
  assert words in refused(*bindings, build=True)


@pytest.mark.parametrize("value", ["1e999", "[1, -1e400]", "{'a': 1e999j}"])
def test_values_that_are_not_finite(value):
  # Of a parameter without a range too; gin could not read them back.
  assert "not finite" in refused(f"weights.InitWeights.variant = {value}")


@pytest.mark.parametrize(
  "name, meant",
  [
    ("train.TrainJob.data", "@run_config.DataConfig()"),
    ("train.TrainJob.recovery", "@rollback.Recovery()"),
    ("run_config.OptimizationConfig.sam", "@sam.SAM()"),
    (
      "run_config.OptimizationConfig.learning_rate",
      "@schedules.warmup_cosine()",
    ),
    ("run_config.DeviceConfig.compute", "@compute.TpuV4()"),
    ("weights.InitWeights.published", "@pretrained.Published()"),
    ("pipeline.Split.fields", "@tfrecords.Fields()"),
    ("config.Launch.job", "@train.TrainJob()"),
    ("config.Launch.sweep", "@sweep.Sweep()"),
  ],
)
def test_objects_are_built_by_references(name, meant):
  wrong = ("5", "'x'", "True", "[]", "@sgd.SGD", repr(meant), meant[:-2])
  for value in wrong if name != "config.Launch.sweep" else wrong[:-1]:
    message = refused(f"{name} = {value}")
    assert f"such as {meant}" in message
    if value.startswith("@"):
      assert f"{name} = {value} is invalid" in message


@pytest.mark.parametrize("value", ["0", "False", "{}", "b'x'", "@sgd.SGD"])
def test_paths_are_texts(value):
  assert "expected a path in quotes" in refused(f"DATA_DIR = {value}")


def test_misspelled_macro_that_is_read():
  message = refused("EPOCHS = %EPOC")
  assert "EPOC is not set, but EPOCHS needs it" in message


def test_files_that_include_each_other(tmp_path):
  first, second = tmp_path / "a.gin", tmp_path / "b.gin"
  first.write_text("include 'b.gin'\n")
  second.write_text("include 'a.gin'\n")
  assert "is included by a file that it includes" in refused(files=[str(first)])


def test_macros_in_another_case():
  assert "did you mean 'EPOCHS'?" in refused("epochs = 3")


def test_misspelled_include_is_located(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("include 'gin/quickstrat.gin'\n")
  message = refused(files=[str(path)])
  assert f"{path}" in message and "did you mean 'gin/quickstart.gin'" in message


@pytest.mark.parametrize("binding", ["EPOCHS = ", "EPOCHS 3", "EPOCHS = [1"])
def test_syntax_errors(binding):
  assert f"--gin_param={binding!r}: gin cannot parse" in refused(binding)


def test_a_missing_macro():
  message = refused(files=["gin/recipes/small.gin"])
  assert "is not set, but" in message and '--gin_param="' in message


def test_a_missing_parameter(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text(
    "from __gin__ import dynamic_registration\n"
    "from nfnets_tf import config\nfrom nfnets_tf.scaling import compute\n"
    "config.Launch.job = @compute.TpuV4()\n"
  )
  message = refused(files=[str(path)])
  assert "compute.TpuV4.utilization is not bound" in message
  assert '--gin_param="compute.TpuV4.utilization = ..."' in message


def test_a_file_without_a_job(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("from nfnets_tf import config\n")
  assert "bind config.Launch.job" in refused(files=[str(path)])


def test_file_without_gin_imports(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("distribution.tpu.address = 'x'\n")
  assert "dynamic_registration" in refused(files=[str(path)])


@pytest.mark.parametrize(
  "binding, words",
  [
    (
      "EPOCHS = 'abc'",
      "a finite number > 0 (schedules.steps_for_epochs.epochs)",
    ),
    ("BATCH_SIZE = 0", "BATCH_SIZE = 0 is invalid"),
    ("schedules.warmup_cosine.warmup_steps = 5000", "lower warmup_steps"),
    ("run_config.Schedule.log_every = 7", "a multiple of"),
    ("run_config.Schedule.checkpoints_to_keep = 0", "integer >= 1"),
    ("run_config.DataConfig.shuffle_buffer = 2.5", "integer >= 1"),
  ],
)
def test_invalid_values_are_refused(binding, words):
  assert words in refused(binding, build=True)


def test_the_resolved_configuration_parses_to_the_same_run(tmp_path):
  first = Configuration([RUN], ["EPOCHS = 3"])
  path = tmp_path / "config.gin"
  path.write_text(first.text)
  assert Configuration([str(path)]).statements == first.statements


def test_differences_from_the_base():
  lines = Configuration([RUN], ["PEAK_LR = 0.2"]).differences()
  assert {"EPOCHS = 40", "VARIANT = 'nano'"} <= set(lines)
  assert "PEAK_LR = 0.2  (base: 0.1)" in lines
  assert len(lines) == 3


def test_later_files_and_bindings_win():
  overlay = Configuration([RUN, "gin/overlays/smoke.gin"])
  assert overlay.statements["EPOCHS"] == "0.3"
  binding = Configuration([RUN, "gin/overlays/smoke.gin"], ["EPOCHS = 5"])
  assert binding.statements["EPOCHS"] == "5"


def test_a_work_directory_keeps_its_configuration(tmp_path):
  path = tmp_path / "config.gin"
  first = Configuration([RUN])
  first.check_workdir(str(path))  # nothing there yet
  path.write_text(first.text)
  Configuration([RUN]).check_workdir(str(path))
  with pytest.raises(UserError, match="EPOCHS was 40, is 41"):
    Configuration([RUN], ["EPOCHS = 41"]).check_workdir(str(path))


def begin(tmp_path, *params):
  """Begins a run; returns a function that resumes it with other bindings."""
  path = tmp_path / "config.gin"
  path.write_text(Configuration([RUN], params).text)
  return lambda *now: Configuration([RUN], now).check_workdir(str(path))


ALLOW = "config.Launch.allow_changes = "
EPOCHS_41, RATE = "EPOCHS = 41", "PEAK_LR = 0.2"
DROP = "pipeline.Split.max_pixels = 1000000"


@pytest.mark.parametrize(
  "before, now",
  [
    ([], [EPOCHS_41]),
    ([], [DROP]),
    ([DROP], []),
    ([], [EPOCHS_41, RATE]),
  ],
  ids=["another value", "not set before", "set no more", "two"],
)
def test_a_refused_change_names_the_binding_that_allows_it(
  tmp_path, before, now
):
  resume = begin(tmp_path, *before)
  with pytest.raises(
    UserError, match="or allow the change with --gin_param="
  ) as error:
    resume(*now)
  allowed = re.search(r'--gin_param="(.*)"', str(error.value))[1]
  resume(*now, allowed)


def test_allowed_changes_are_logged_and_others_refused(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  caplog.set_level(logging.INFO, "nfnets_tf")
  resume = begin(tmp_path)
  resume(EPOCHS_41, f"{ALLOW}['EPOCHS', 'PEAK_LR']")
  assert caplog.messages == [
    "Resuming with a changed configuration: EPOCHS was 40, is 41."
  ]
  caplog.clear()
  resume(f"{ALLOW}('EPOCHS',)")  # nothing has changed
  assert not caplog.messages
  with pytest.raises(UserError, match=r"config.gin: PEAK_LR was 0.1, is 0.2\)"):
    resume(EPOCHS_41, RATE, f"{ALLOW}['EPOCHS']")


def test_data_may_move(tmp_path):
  begin(tmp_path)("DATA_DIR = 'elsewhere'")


def test_allow_changes_may_itself_change(tmp_path):
  begin(tmp_path, f"{ALLOW}['EPOCHS']")()
  begin(tmp_path)(f"{ALLOW}['EPOCHS']")
  begin(tmp_path, f"{ALLOW}['EPOCHS']")(f"{ALLOW}['PEAK_LR']", RATE)
  with pytest.raises(UserError, match="EPOCHS was 40, is 41"):
    begin(tmp_path, f"{ALLOW}['EPOCHS']")(EPOCHS_41)


def test_allow_changes_names_must_be_bound(tmp_path):
  with pytest.raises(UserError, match="'EPOCH', .*; did you mean 'EPOCHS'?"):
    begin(tmp_path)(f"{ALLOW}['EPOCH']")


@pytest.mark.parametrize("value", ["'EPOCHS'", "3", "[3]", "%SEED"])
def test_allow_changes_must_be_a_list_of_names(tmp_path, value):
  with pytest.raises(UserError, match="config.Launch.allow_changes"):
    begin(tmp_path)(ALLOW + value)


def test_building_gives_the_job_with_its_bindings():
  job = Configuration([RUN], ["SEED = 7"]).build_job()
  assert (job.model.variant, job.seed, job.schedule.total_steps) == (
    "nano",
    7,
    898,
  )
  assert Launch(job=job).job is job
  assert Launch(job=job).allow_changes == ()
  assert Launch(job=job, allow_changes=["EPOCHS"]).allow_changes == ("EPOCHS",)
