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
    """Rows of text under headings, notes below them.

    The first column and those in ``left`` are flush left, the others right.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())

    def show(self) -> None:
        """Prints it, as wide as the terminal allows."""
        table = RichTable(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for k, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if self._is_left(k) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
        console.print(table)
        for note in self.notes:
            console.print(Text(note))

    def markdown(self) -> str:
        """A Markdown table, its title in bold above it, its notes as a paragraph below it."""
        marks = ["---" if self._is_left(k) else "---:" for k in range(len(self.columns))]
        lines = [self.columns, marks, *self.rows]
        cells = (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in lines
        )
        head = f"**{self.title}**\n\n" if self.title else ""
        notes = f"\n{'; '.join(self.notes)}\n" if self.notes else ""
        return head + "\n".join(cells) + "\n" + notes

    def csv(self) -> str:
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return output.getvalue()

    def _is_left(self, k: int) -> bool:
        return k == 0 or self.columns[k] in self.left
