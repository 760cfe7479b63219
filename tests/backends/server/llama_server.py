"""llama-cpp-python's own server, with AMX kept away from it, which crashes the process in some builds.

python llama_server.py MODEL PORT; one thread, float32 throughout, so that its numbers can be compared.
"""

from __future__ import annotations

import sys

from r1quant.backends import llamacpp

FLOAT32 = 0  # of ggml_type


def main() -> None:
    path, port = sys.argv[1:]
    llamacpp.library()
    import uvicorn
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    model = ModelSettings(
        model=path,
        model_alias="tiny-r1",
        n_ctx=512,
        n_threads=1,
        n_threads_batch=1,
        type_k=FLOAT32,
        type_v=FLOAT32,
        logits_all=True,
        verbose=False,
    )
    app = create_app(server_settings=ServerSettings(), model_settings=[model])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
