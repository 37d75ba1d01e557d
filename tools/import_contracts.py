"""A contract of import-linter's: what is not the lab knows nothing of it, and needs few packages."""

from __future__ import annotations

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class CoreContract(Contract):
    """Every module outside `lab` imports no module of it, and no package but Python's own and the `allowed`.

    `optional` lists, as "importer -> package", what is imported only when it is asked for, with an error if missing.
    """

    lab = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())
    optional = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        free = {*self.allowed, *sys.stdlib_module_names}
        root = self.session_options["root_packages"][0]
        broken = []
        for importer in sorted(graph.modules):
            if importer.split(".")[0] != root or self._of_lab(importer):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                package = imported.split(".")[0]
                known = package in free or f"{importer} -> {imported}" in self.optional
                if self._of_lab(imported) if package == root else not known:
                    broken.append(f"{importer} imports {imported}")
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(line)

    def _of_lab(self, module: str) -> bool:
        return any(module == part or module.startswith(f"{part}.") for part in self.lab)
