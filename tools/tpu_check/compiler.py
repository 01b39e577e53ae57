"""Compiles and runs lowered programs; part of the compiler's environment.

  python -m tools.tpu_check.compiler compile|run REQUEST.json

The request names the program and everything else; docs/tpu.md describes the
record that is written.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import resource
import sys
import time

# No TPU is looked for, and several compilers may run at a time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import importlib.metadata  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402
from jax._src.lib import xla_client  # noqa: E402
from jax._src.lib.mlir import ir  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from tools.tpu_check import hlo  # noqa: E402

_ALIAS = re.compile(
  r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>"
)
_NEEDED = re.compile(r"\(([\d.]+)([KMG])\) exceeds available")
_AVAILABLE = re.compile(r"available HBM \(([\d.]+)([KMG])\)")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
jax.config.update("jax_enable_x64", True)  # counters have 64 bits
_PACKAGES = ("jax", "jaxlib", "libtpu", "numpy")


class Module:
  """A lowered program, made fit for compilation.

  Args:
    path: of the StableHLO bytecode.
    donate: whether outputs may take the place of the variables they replace.

  Attributes:
    context: of MLIR, entered while the module is used.
    module: MLIR's.
    aliases: {argument: output} of the variables that are written.
    num_outputs: of the program.
  """

  def __init__(self, path: str, *, donate: bool):
    self.context = mlir.make_ir_context()
    with self.context, ir.Location.unknown():
      self.module = ir.Module.parse(pathlib.Path(path).read_bytes())
      self.aliases = self._take_aliases()
      self._remove_copies(self.module.operation)
      self._main = next(
        operation
        for operation in self.module.body.operations
        if getattr(getattr(operation, "name", None), "value", "") == "main"
      )
      self.num_outputs = len(self._main.type.results)
      if donate:
        self._donate()

  def _take_aliases(self) -> dict[int, int]:
    """Removes what StableHLO carries over from HLO as mere attributes."""
    attributes = self.module.operation.attributes
    names = [getattr(each, "name", each) for each in attributes]
    aliases = {}
    for name in names:
      if name == "mhlo.input_output_alias":
        pairs = _ALIAS.findall(str(attributes[name]))
        aliases = {int(argument): int(output) for argument, output in pairs}
      if name.startswith(("mhlo.input_output_alias", "mhlo.cross_program")):
        del attributes[name]
    return aliases

  def _remove_copies(self, operation) -> None:
    # TensorFlow copies what it returns, by an operation of another dialect.
    for region in operation.regions:
      for block in region.blocks:
        for inner in list(block.operations):
          self._remove_copies(inner.operation)
          if inner.operation.name == "mhlo.copy":
            result, operand = inner.operation.results, inner.operation.operands
            result[0].replace_all_uses_with(operand[0])
            inner.operation.erase()

  def _donate(self) -> None:
    """Lets new values of variables use the memory of the old ones."""
    main = self._main
    given = [{} for _ in main.type.inputs]
    if "arg_attrs" in main.attributes:
      given = [{a.name: a.attr for a in each} for each in main.arg_attrs]
    number = ir.IntegerType.get_signless(32)
    for argument, output in self.aliases.items():
      given[argument]["tf.aliasing_output"] = ir.IntegerAttr.get(number, output)
    main.arg_attrs = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in given])


def compile_for_slice(request: dict) -> dict:
  """Compiles a program for a slice.

  Args:
    request: program (path), topology (chips along each axis), torus, and
      text (path of the optimized program's text; may be missing).

  Returns:
    The compiler's part of a record.
  """
  devices = _devices(request["topology"], request["torus"])
  module = Module(request["program"], donate=True)
  options = _options([device.id for device in devices])
  started = time.monotonic()
  result = {"versions": _versions()}
  try:
    with module.context:
      executable = devices[0].client.compile(
        module.module,
        executable_devices=xla_client.DeviceList(tuple(devices)),
        compile_options=options,
      )
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    result.update(_read_out_of_memory(str(error)))
  else:
    result.update(_measure(executable, request.get("text")))
  usage = resource.getrusage(resource.RUSAGE_SELF)
  result["compile"] = {
    "seconds": round(time.monotonic() - started, 1),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    "host_memory_bytes": usage.ru_maxrss * 1024,
  }
  return result


def _devices(topology, torus: bool):
  described = topologies.get_topology_desc(
    platform="tpu",
    topology_name=f"v4:{'x'.join(map(str, topology))}",
    # One device a chip, as TensorFlow sees a TPU v4.
    chip_config_name="megacore",
    chips_per_host_bounds=(2, 2, 1),
    num_slices=1,
    wrap=(torus,) * 3,
  )
  return described.devices


def _options(device_ids):
  options = xla_client.CompileOptions()
  build = options.executable_build_options
  options.num_replicas = build.num_replicas = len(device_ids)
  options.num_partitions = build.num_partitions = 1
  ids = np.asarray(device_ids).reshape(-1, 1)
  options.device_assignment = xla_client.DeviceAssignment.create(ids)
  return options


def _measure(executable, text_path: str | None) -> dict:
  memory = executable.get_compiled_memory_stats()
  cost = executable.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  text = executable.hlo_modules()[0].to_string()
  if text_path:
    pathlib.Path(text_path).write_text(text)
  return {
    "fits": True,
    "memory": {
      "peak_bytes": memory.peak_memory_in_bytes,
      "arguments_bytes": memory.argument_size_in_bytes,
      "outputs_bytes": memory.output_size_in_bytes,
      "aliased_bytes": memory.alias_size_in_bytes,
      "temporaries_bytes": memory.temp_size_in_bytes,
      "program_bytes": memory.generated_code_size_in_bytes,
    },
    "flops": cost["flops"],
    "bytes_accessed": cost["bytes accessed"],
    "optimized": hlo.summarize(text),
  }


def _read_out_of_memory(message: str) -> dict:
  def read(pattern):
    match = pattern.search(message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else None

  first = " ".join(message.split())
  return {
    "fits": False,
    "memory": {
      "needed_bytes": read(_NEEDED),
      "available_bytes": read(_AVAILABLE),
    },
    "message": first[:600],
  }


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def run_on_cpu(request: dict) -> None:
  """Runs a program of two replicas on the CPU, several steps in a row.

  Args:
    request: program; values (.npz of the captured variables, by number);
      batches (.npz of all replicas' examples, as STEP/INPUT); steps; and
      results (.npz of the variables after them, as VARIABLE/REPLICA).
  """
  module = Module(request["program"], donate=False)
  devices = jax.devices("cpu")[:2]
  with module.context:
    executable = devices[0].client.compile_and_load(
      module.module,
      executable_devices=xla_client.DeviceList(tuple(devices)),
      compile_options=_options([device.id for device in devices]),
    )
  batches, values = np.load(request["batches"]), np.load(request["values"])
  num_inputs = sum(name.startswith("0/") for name in batches)
  state = [[values[str(i)]] * len(devices) for i in range(len(values.files))]
  for step in range(request["steps"]):
    inputs = [
      np.split(batches[f"{step}/{i}"], len(devices)) for i in range(num_inputs)
    ]
    outputs = executable.execute_sharded(
      [_place(copies, devices) for copies in (*inputs, *state)]
    ).disassemble_into_single_device_arrays()
    for argument, output in module.aliases.items():
      state[argument - num_inputs] = [np.asarray(x) for x in outputs[output]]
  results = {
    f"{i}/{replica}": value
    for i, copies in enumerate(state)
    for replica, value in enumerate(copies)
  }
  np.savez(request["results"], **results)


def _place(copies, devices) -> jax.Array:
  """Returns an array of which each replica has a copy of its own."""
  mesh = jax.sharding.Mesh(np.array(devices), ("replica",))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  placed = [jax.device_put(c, d) for c, d in zip(copies, devices)]
  return jax.make_array_from_single_device_arrays(
    copies[0].shape, everywhere, placed
  )


def main(arguments: list[str]) -> None:
  """Serves one request; `python -m tools.tpu_check` makes them."""
  task, path = arguments
  request = json.loads(pathlib.Path(path).read_text())
  if task == "run":
    run_on_cpu(request)
    return
  result = compile_for_slice(request)
  pathlib.Path(request["results"]).write_text(json.dumps(result))


if __name__ == "__main__":
  main(sys.argv[1:])
