"""A process that has imported all that is heavy, and forks a child for each command it is asked to run.

So a crash test costs no imports, and a child that is killed leaves nothing behind in the process that runs the tests.
It must not run the compiled kernels itself: their threads would not survive a fork. One request is one JSON line on
stdin, one answer is one JSON line on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 300  # after which a child that hangs is ended


def warm_up() -> None:
    import torch
    import transformers

    import r1quant.checkpoint.tokenizer
    import r1quant.cli
    import r1quant.engine.grids.uniform_kernels
    import r1quant.jobs.quantize.calibrated
    import r1quant.jobs.quantize.run
    import r1quant.jobs.quantize.uncalibrated

    torch.set_num_threads(1)
    assert r1quant.cli and r1quant.jobs and transformers.AutoConfig and transformers.LlamaForCausalLM


def child(request: dict[str, Any], out: str, err: str) -> NoReturn:
    from r1quant.cli import main
    from r1quant.planning import layout
    from tests.crash import points

    signal.alarm(SECONDS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    os.chdir(request["folder"])
    os.environ["R1QUANT_CACHE"] = f"{request['folder']}.cache"
    for name, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY), descriptor)
    layout.SHARD_LIMIT = request["shard_limit"]
    code: Any = 70
    try:
        if request["point"] is not None:
            points.arm(points.Point(**request["point"]), points.ACTIONS[request["action"]])
        main(request["words"])
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()
            err.touch()
            process = os.fork()
            if process == 0:
                child(request, str(out), str(err))
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            answer = {"code": code, "out": out.read_text("utf-8"), "err": err.read_text("utf-8")}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
