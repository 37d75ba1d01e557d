"""`python -m localora.lab.evaluation.lm_eval ...`: the `lm_eval` command in a process that knows our adapters.

Takes what `lm_eval` takes. It imports localora first, so that `--model hf --model_args pretrained=BASE,peft=ADAPTER`
loads our adapters, and adds our tasks (localora_boolq, ...) to the harness's, unless another --include_path is given.
"""

from __future__ import annotations

import sys

import localora  # noqa: F401  # registers our methods with PEFT
from localora.lab.evaluation.lm_eval.harness import TASKS, import_lm_eval


def main() -> None:
    import_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    if len(sys.argv) > 1 and not any(argument.startswith("--include_path") for argument in sys.argv):
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    main()
