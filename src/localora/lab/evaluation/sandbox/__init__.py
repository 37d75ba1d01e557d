"""Running generated programs in a box: `Sandbox().run(Sample(...))`. What it keeps out: docs/evaluation.md."""

from localora.lab.evaluation.sandbox.box import Limits, Sample, Sandbox, SandboxError, Verdict

__all__ = ["Limits", "Sample", "Sandbox", "SandboxError", "Verdict"]
