"""A small table, for a terminal, for Markdown, and for CSV."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

PIPED_WIDTH = 200


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column and those in ``left`` are flush left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = field(default=())

    def show(self) -> None:
        """Prints it, as wide as the terminal allows."""
        table = RichTable(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for k, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if self._is_left(k) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False).print(table)

    def markdown(self) -> str:
        """A Markdown table, its title in bold above it."""
        marks = ["---" if self._is_left(k) else "---:" for k in range(len(self.columns))]
        lines = [self.columns, marks, *self.rows]
        cells = (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in lines
        )
        head = f"**{self.title}**\n\n" if self.title else ""
        return head + "\n".join(cells) + "\n"

    def csv(self) -> str:
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return output.getvalue()

    def _is_left(self, k: int) -> bool:
        return k == 0 or self.columns[k] in self.left
