"""Draw the pipeline from text to release as SVG: programs, the packages that each imports, and the files it writes.

python examples/pipeline.py    # writes examples/pipeline-light.svg and examples/pipeline-dark.svg
"""

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Program, and the main files that it leaves for the next one.
ROWS = (
    (
        ("training/corpus", "Parquet, sources.json"),
        ("training/curation", "Parquet, curation.json"),
        ("training/tokenizer", "tokenizer.json"),
        ("training/shards", "shards, manifest.json"),
        ("training/pretrain", "run folder, model/"),
    ),
    (
        ("training/trace", "verbatim passages"),
        ("training/evaluate", "eval/TASK.json, report"),
        ("training/finetune", "run folder, model/"),
        ("model_card/release", "llama, gguf, onnx, card"),
        ("model_card/validate", "checked card"),
    ),
)
# Row and column of the program that writes and of the one that reads.
ARROWS = (
    ((0, 0), (0, 1)),
    ((0, 1), (0, 2)),
    ((0, 2), (0, 3)),
    ((0, 3), (0, 4)),
    ((0, 4), (1, 2)),
    ((0, 3), (1, 0)),
    ((1, 2), (1, 1)),
    ((1, 2), (1, 3)),
    ((1, 3), (1, 4)),
)
COLOURS = {
    "light": {"text": "#1f2328", "faint": "#59636e", "box": "#f6f8fa", "line": "#8c959f"},
    "dark": {"text": "#f0f6fc", "faint": "#9198a1", "box": "#151b23", "line": "#656c76"},
}
WIDTH, HEIGHT, GAP_X, GAP_Y = 172, 96, 24, 44


def packages(program: str) -> list[str]:
    """List the subpackages that a program imports, in the order of their names."""
    path = ROOT / f"{program}.py" if (ROOT / f"{program}.py").exists() else ROOT / program / "__main__.py"
    room, names = program.partition("/")[0], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = node.module.split(".") if node.module else []
            names |= {parts[0]} if parts else {alias.name for alias in node.names}
    if (ROOT / program).is_dir():
        names.add(Path(program).name)
    return sorted(name for name in names - {"common"} if (ROOT / room / name).is_dir())


def corner(row: int, column: int) -> tuple[int, int]:
    """Return the upper left corner of a box in pixels."""
    return column * (WIDTH + GAP_X) + 1, row * (HEIGHT + GAP_Y) + 1


def draw(colours: dict[str, str]) -> str:
    """Return the drawing in one colour scheme."""
    width = len(ROWS[0]) * (WIDTH + GAP_X) - GAP_X + 2
    height = len(ROWS) * (HEIGHT + GAP_Y) - GAP_Y + 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colours["line"]}"/></marker></defs>',
    ]
    for (row, column), (to_row, to_column) in ARROWS:
        (x, y), (to_x, to_y) = corner(row, column), corner(to_row, to_column)
        if row == to_row:
            right = to_column > column
            start, end = (x + WIDTH * right, y + HEIGHT // 2), (to_x + WIDTH * (not right), to_y + HEIGHT // 2)
            points = [start, end]
        else:
            middle = y + HEIGHT + GAP_Y * column // 6
            points = [
                (x + WIDTH // 2, y + HEIGHT),
                (x + WIDTH // 2, middle),
                (to_x + WIDTH // 2, middle),
                (to_x + WIDTH // 2, to_y),
            ]
        path = "M" + "L".join(f"{px} {py}" for px, py in points)
        parts.append(f'<path d="{path}" fill="none" stroke="{colours["line"]}" marker-end="url(#tip)"/>')
    for row, programs in enumerate(ROWS):
        for column, (program, written) in enumerate(programs):
            x, y = corner(row, column)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colours["box"]}" '
                f'stroke="{colours["line"]}"/>'
            )
            names = packages(program)
            half = (len(names) + 1) // 2
            lines = [(24, 15, "text", Path(program).name, "600"), (84, 12, "text", written, "400")]
            lines += [
                (43, 11, "faint", ", ".join(names[:half]), "400"),
                (58, 11, "faint", ", ".join(names[half:]), "400"),
            ]
            for offset, size, colour, text, weight in lines:
                if text:
                    parts.append(
                        f'<text x="{x + 12}" y="{y + offset}" font-size="{size}" font-weight="{weight}" '
                        f'fill="{colours[colour]}">{escape(text)}</text>'
                    )
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Write both drawings next to this file."""
    for name, colours in COLOURS.items():
        Path(__file__).with_name(f"pipeline-{name}.svg").write_text(draw(colours), encoding="utf-8")


if __name__ == "__main__":
    main()
