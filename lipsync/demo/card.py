"""The model card's table of measures, written from the evaluation's report so that the two never differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_ROWS = (
    ("jaw: correlation with the truth", "jawOpen", "≥ 0.88", "≥ 0.75"),
    ("jaw: what the ear alone reaches", "jawOpen_ear", "", ""),
    ("jaw: what the drawing alone reaches, told the truth", "jawOpen_hand", "", ""),
    ("jaw: amplitude ÷ truth's", "amplitude", "0.85–1.15", ""),
    ("jaw: amplitude of the ear alone, not widened", "amplitude_ear", "", ""),
    ("lag 0, share of sequences", "lag_0_share", "≥ 0.95", "≥ 0.90"),
    ("funnel: correlation", "mouthFunnel", "≥ 0.65", ""),
    ("funnel: the ear alone", "mouthFunnel_ear", "", ""),
    ("funnel: the drawing alone", "mouthFunnel_hand", "", ""),
    ("pucker: correlation", "mouthPucker", "≥ 0.65", ""),
    ("pucker: the ear alone", "mouthPucker_ear", "", ""),
    ("pucker: the drawing alone", "mouthPucker_hand", "", ""),
    ("shut in silence, share of frames", "shut_in_silence", "≥ 0.90", ""),
    ("shut on p, b, m, share of them", "shut_on_pbm", "≥ 0.90", ""),
    ("PSNR outside the mouth, dB", "psnr_outside_db", "≥ 36", ""),
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
    truth = {"for comparison: the truth of the synthesised sentences": report["truth_of_the_sentences"]}
    for name, row in (report["recorded_speech"] | truth).items():
        lines.append(f"| {name} | {row['energy_correlation']} | {row['loudness_correlation']} | {row['shuffled']} |")
    return "\n".join(lines)


def write_card(card: Path, report: Path) -> None:
    """Put the table of the report between the card's marks."""
    before, _, rest = card.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = measured_table(json.loads(report.read_text()))
    card.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}")
