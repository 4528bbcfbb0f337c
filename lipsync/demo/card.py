"""The model card's tables of times and measures, written from the evaluation's report so that they never differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MADE = ("media", "speech", "hearing", "frames", "drawing", "export")
_ROWS = (
    ("jaw: correlation with the truth", "jawOpen", "≥ 0.88", "≥ 0.75"),
    ("jaw: what the ear alone reaches", "jawOpen_ear", "", ""),
    ("jaw: what the drawing alone reaches, told the truth", "jawOpen_hand", "", ""),
    ("jaw: amplitude ÷ truth's", "amplitude", "0.85–1.15", ""),
    ("jaw: amplitude of the ear alone, not widened", "amplitude_ear", "", ""),
    ("jaw: sequences with an amplitude of 0.85–1.15, share", "amplitude_inside_share", "", ""),
    ("jaw: amplitude of the sequence that moves least", "amplitude_least", "", ""),
    ("lag 0, share of sequences", "lag_0_share", "≥ 0.95", "≥ 0.90"),
    ("funnel: correlation", "mouthFunnel", "≥ 0.65", ""),
    ("funnel: the ear alone", "mouthFunnel_ear", "", ""),
    ("funnel: the drawing alone", "mouthFunnel_hand", "", ""),
    ("pucker: correlation", "mouthPucker", "≥ 0.65", ""),
    ("pucker: the ear alone", "mouthPucker_ear", "", ""),
    ("pucker: the drawing alone", "mouthPucker_hand", "", ""),
    ("shut in silence, share of frames", "shut_in_silence", "≥ 0.90", ""),
    ("shut on p, b, m, share of them", "shut_on_pbm", "≥ 0.90", ""),
    ("the same of the rendered truth", "shut_on_pbm_truth", "", ""),
    ("the same on all other sounds, where it should be less", "shut_on_others", "", ""),
    ("PSNR outside the mouth, dB", "psnr_outside_db", "≥ 36", ""),
    ("PSNR outside of a picture that never moves, dB", "psnr_outside_db_of_rest", "", ""),
    ("mouth L1, of 255", "mouth_l1", "", ""),
    ("mouth L1 of a mouth that never moves", "mouth_l1_of_rest", "", ""),
    ("edges in the mouth ÷ truth's", "sharpness", "", ""),
    ("sequences", "sequences", "", ""),
)


def measured_table(report: dict[str, Any]) -> str:
    """Markdown: measures on shipped and on unknown faces beside what was wished for, then recorded speech."""
    shipped, unknown = report["shipped_faces"], report["unknown_faces"]
    lines = ["| measure | shipped faces | wished | unknown faces | wished |", "|---|---|---|---|---|"]
    for label, key, wished, wished_unknown in _ROWS:
        lines.append(f"| {label} | {shipped[key]} | {wished} | {unknown[key]} | {wished_unknown} |")
    lines += ["", "| recorded speech | opening against energy | against loudness | against shuffled loudness |"]
    lines.append("|---|---|---|---|")
    if not report["recorded_speech"]:
        lines.append("| not measured: no recording was given | | | |")
    truth = {"for comparison: the truth of the synthesised sentences": report["truth_of_the_sentences"]}
    for name, row in (report["recorded_speech"] | truth).items():
        lines.append(f"| {name} | {row['energy_correlation']} | {row['loudness_correlation']} | {row['shuffled']} |")
    return "\n".join(lines)


def made_table(report: dict[str, Any]) -> str:
    """Markdown: the minutes that each step of ``make demo-model`` took, and on what."""
    made, machine = report["made"], report["made"]["machine"]
    lines = [f"| step | minutes ({machine['processor']}, {made['threads']} threads) |", "|---|---|"]
    for step in _MADE:
        lines.append(f"| {step} | {made['s'][step] / 60:.1f} |" if step in made["s"] else f"| {step} | not timed |")
    return "\n".join([*lines, f"| in all | {sum(made['s'].get(step, 0) for step in _MADE) / 60:.0f} |"])


def write_card(card: Path, report: Path) -> None:
    """Put the tables of the report between the card's marks."""
    measured, text = json.loads(report.read_text()), card.read_text()
    for name, table in (("made", made_table(measured)), ("measured", measured_table(measured))):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{card} has no place for a table: it wants the lines {begin} and {end}.")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    card.write_text(text)
