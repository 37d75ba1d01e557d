"""Running generated programs in a box: `Sandbox().run(program, tests)`. What it keeps out: docs/evaluation.md."""

from localora.lab.evaluation.sandbox.box import Limits, Sandbox, SandboxError, Verdict

__all__ = ["Limits", "Sandbox", "SandboxError", "Verdict"]
