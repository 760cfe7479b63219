"""The process in which one model is timed: `python -m r1quant.jobs.bench.child SETTINGS`. See jobs/bench/process.py.

It opens the model, says so in one line of JSON, then answers each line of its input (a batch of prompts) with one line
(when their tokens came, and the largest memory so far). It has one model and nothing else in it, so that its memory is
that model's; it does not know what is compared with what.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from r1quant.backends import Prompt, Runtime, Sampling
from r1quant.checkpoint.artifact import Artifact
from r1quant.core.json import JsonObject
from r1quant.errors import R1QuantError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.bench.process import BenchLoad, OpenedModel, PeakMemory, ProcessSettings
from r1quant.jobs.runtimes import backend_of, open_runtime
from r1quant.jobs.setup import SERVER
from r1quant.metrics.speed import Timed
from r1quant.records.bench import BenchCard
from r1quant.storage.provenance import environment, peak_rss_bytes

STATUS = Path("/proc/self/status")


def main(settings: ProcessSettings) -> None:
    """Answers until the input ends. What libraries print on stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: JsonObject) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        runtime, opened = _open(settings)
        answer(asdict(replace(opened, environment=environment())))
        for line in sys.stdin:
            answer(asdict(_run(runtime, json.loads(line))))
    except KeyboardInterrupt:
        return
    except Exception as error:
        if settings.debug:
            traceback.print_exc()
        answer({"error": _error_json(error)})


def _error_json(error: Exception) -> dict[str, str]:
    """An error as the other end raises it again."""
    if isinstance(error, R1QuantError):
        return {"kind": error.kind, "message": error.message, "hint": error.hint}
    reason = " ".join(str(error).split()) or "no reason given"
    hint = "run again with --debug and report the traceback"
    return {"kind": "R1QuantError", "message": f"unexpected: {type(error).__name__}: {reason}", "hint": hint}


def _open(settings: ProcessSettings) -> tuple[Runtime, OpenedModel]:
    artifact, setup = open_artifact(settings.model), replace(settings.setup, slots=settings.slots)
    if setup.backend == SERVER:
        return _served(artifact, settings)
    opened = OpenedModel(setup.backend)
    if backend_of(artifact, setup.backend) == "torch":
        import torch

        from r1quant.engine.forward import pick_device, pick_dtype

        device = pick_device(setup.device)
        dtype = str(pick_dtype(setup.dtype, device)).removeprefix("torch.")
        card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        described = None if card is None else BenchCard(card.name, card.total_memory)
        opened = replace(opened, device=str(device), dtype=dtype, card=described)
    empty = peak_memory().rss
    runtime = open_runtime(artifact, settings.context, setup)
    first = Prompt("", ({"role": "user", "content": ""},), (0,))
    for _ in runtime.complete([first], Sampling(temperature=0.0, max_tokens=2), frozenset()):
        pass  # some runtimes load the weights only now
    holds = getattr(runtime, "holds", None)
    return runtime, replace(
        opened,
        backend=runtime.name,
        empty_rss_bytes=empty,
        resident=getattr(runtime, "resident", None),
        holds=None if holds is None else holds(settings.context),
    )


def _served(artifact: Artifact, settings: ProcessSettings) -> tuple[Runtime, OpenedModel]:
    """A model on a server, which is sent the very tokens if it takes them. Its memory is not this process's."""
    from r1quant.backends.openai import OpenAI
    from r1quant.checkpoint.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    runtime = OpenAI(
        settings.setup.base_urls,
        settings.setup.served,
        concurrency=settings.slots,
        raw=True,
        moments=True,
        text_of=tokenizer.decode,
        bos=tokenizer.bos_id,
    )
    return runtime, OpenedModel(runtime.name, elsewhere=True)


def _run(runtime: Runtime, request: JsonObject) -> BenchLoad:
    """Completes one batch. request: prompts, each with the keys of a BenchPrompt, and new_tokens."""
    prompts = [
        Prompt(entry["key"], ({"role": "user", "content": entry["text"]},), tuple(entry["tokens"]))
        for entry in request["prompts"]
    ]
    given = {prompt.key: len(prompt.tokens) for prompt in prompts}
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=request["new_tokens"])
    texts = []
    gc.collect()
    begun = time.perf_counter()
    for done in runtime.complete(prompts, sampling, frozenset()):
        ended = time.perf_counter() - begun
        texts.append(Timed(given[done.key], done.count, tuple(done.moments), ended))
    return BenchLoad(tuple(texts), peak_memory(), getattr(runtime, "at_once", None))


def peak_memory() -> PeakMemory:
    """Largest memory of this process so far, in bytes: rss (files mapped into it included), what torch held on a GPU,
    and what the GPU's driver says that this process holds now. None if there is none, or nobody to ask."""
    return PeakMemory(_peak_rss(), _torch_bytes(), _nvml_bytes())


def _peak_rss() -> int:
    """The kernel's own high-water mark: what getrusage gives can be that of the process that started this one."""
    try:
        lines = STATUS.read_text("ascii", "replace").splitlines()
    except OSError:
        return peak_rss_bytes()
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return peak_rss_bytes() if kilobytes is None else int(kilobytes) * 1024


def _torch_bytes() -> int | None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(int(torch.cuda.max_memory_allocated(device)) for device in range(torch.cuda.device_count()))


def _nvml_bytes() -> int | None:
    """None also if the driver does not list this process, as in most containers."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            found: list[int | None] = [
                process.usedGpuMemory
                for index in range(pynvml.nvmlDeviceGetCount())
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
                if process.pid == os.getpid()
            ]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


if __name__ == "__main__":
    main(ProcessSettings.restored(json.loads(sys.argv[1])))
