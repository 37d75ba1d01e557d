"""What the runs of a plan need of a machine that is not this one."""

from __future__ import annotations

from pathlib import Path

import localora
from localora.lab.compare.plan import Plan
from localora.lab.compare.workers.node.checks import Needs, release
from localora.lab.compare.workers.node.digest import digest_all, digest_sources
from localora.lab.training.record import PACKAGES


def needs_of(plan: Plan) -> Needs:
    """This machine's code and packages, and the local files that `plan` names, with their contents' digests.

    A model or data set of the Hub, and smollm2-135m, are no local files: each node fetches them once.
    """
    return {
        "sources": digest_sources(Path(localora.__file__).parent),
        "versions": {name: release(name) for name in PACKAGES if name != "localora"},  # that one is told by `sources`
        "directory": str(Path.cwd()),
        "files": {name: digest_all(Path(name).expanduser()) for name in local_names(plan)},
    }


def local_names(plan: Plan) -> list[str]:
    """Files and folders of this machine that the plan names, as it names them."""
    data = [name for spec in plan.tasks.values() for files in spec.files.values() for name in files]
    model = [plan.model.name] if Path(plan.model.name).expanduser().is_dir() else []
    published = [plan.published.data] if plan.published.tasks and plan.published.data else []
    return list(dict.fromkeys(model + data + published))
