"""The page of a report: its timeline, what it shows, and how a browser draws it."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
from sample_reports import HOSTILE, check, mixed_report, report, sweep

from dengine_sm.conformance.report_page import report_to_html
from dengine_sm.conformance.report_text import failures, printable
from dengine_sm.conformance.report_text import summary as summary_line
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.timeline import timeline_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class TestTimeline:
    def test_has_a_row_a_system_call_and_a_style_an_outcome(self) -> None:
        timeline = timeline_of({"timeline": sweep(90)})

        assert timeline is not None
        assert len(timeline.points) == 90
        assert {name for name, _ in timeline.rows} == {row[1] for row in sweep(90)}
        assert sum(item.count for item in timeline.legend) == 90
        styles = {item.outcome: item.style for item in timeline.legend}
        assert len(set(styles.values())) == len(styles) == 4
        assert styles["violated CRASH-1"] == "bad"

    def test_failures_are_drawn_last_and_points_stay_inside(self) -> None:
        timeline = timeline_of({"timeline": sweep(500)})

        assert timeline is not None
        assert timeline.points[-1].style == "bad"
        assert all(0 < p.x < timeline.width and 0 < p.y < timeline.height for p in timeline.points)
        assert timeline.points[-1].title.startswith("333: ")

    def test_points_on_one_spot_stand_apart(self) -> None:
        rows = [[4, "write", "f", "flush", f"outcome {n}"] for n in range(3)]

        timeline = timeline_of({"timeline": rows})

        assert timeline is not None
        assert len({(point.x, point.y) for point in timeline.points}) == 3

    @pytest.mark.parametrize("last", [1, 2, 7, 8, 100, 12345])
    def test_the_axis_has_few_round_numbers(self, last: int) -> None:
        timeline = timeline_of({"timeline": [[1, "w", "", "", "a"], [last, "w", "", "", "a"]]})

        assert timeline is not None
        assert 1 <= len(timeline.ticks) <= 8
        assert all(1 <= k <= last for k, _ in timeline.ticks)

    @pytest.mark.parametrize("rows", [None, 5, "text", [], [[1, 2]], [["1", "w", "", "", "a"]]])
    def test_other_evidence_gives_no_drawing(self, rows: Any) -> None:
        assert timeline_of({"timeline": rows}) is None


class TestPage:
    def test_needs_nothing_but_itself(self) -> None:
        page = report_to_html(mixed_report())

        assert page.startswith("<!doctype html>\n")
        assert "<script" not in page
        assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", page) == []
        assert "@import" not in page and "url(" not in page
        assert page.encode().decode() == page

    def test_shows_every_clause_with_status_and_sentence(self) -> None:
        written = mixed_report()
        page = report_to_html(written)
        text = self.text(page)

        for result in written.clauses:
            assert result.sentence.replace("`", "") in text
            assert re.search(rf"{result.clause}\S {result.status.value}", text), result.clause
            row = re.search(rf'<tr id="{result.clause}">.*?</tr>', page, re.DOTALL)
            assert row is not None and f"</span> {result.status.value}</span>" in row[0]

    def test_shows_what_was_run(self) -> None:
        text = self.text(report_to_html(mixed_report()))

        for fact in (
            "acme 2.3.0",
            "acme-sm",
            "durability = per_apply, text = two words, sync = true",
            "kv/1",
            "PER_APPLY",
            "2026-11-24 15:04:05 UTC",
            "Linux 6.1.0 x86_64, 2 cores",
            "3.11.9",
            summary_line(mixed_report()),
        ):
            assert fact in text

    def test_failures_are_open_and_tell_everything(self) -> None:
        written = mixed_report()
        page = report_to_html(written)

        assert page.count("<details open>") == 6  # CRASH-3 shows what CRASH-1's check found
        for result in failures(written):
            for line in (result.expected, result.observed, *result.history, result.details):
                assert printable(line) in html.unescape(page)
        assert "dengine-sm conformance acme --clause CRASH-1 --seed 7" in page

    def test_draws_a_sweep_with_a_tooltip_a_point(self) -> None:
        written = report(check("CRASH-1", Status.PASSED, evidence={"timeline": sweep(60)}))
        page = report_to_html(written)

        assert page.count("<svg") == 1 + 4  # the drawing, and the legend's markers
        assert len(re.findall(r"<title>\d+: ", page)) == 60
        assert "violated CRASH-1 <span" in page

    def test_what_a_backend_says_stays_text(self) -> None:
        hostile = mixed_report(
            backend=HOSTILE, version=HOSTILE, options={HOSTILE: HOSTILE}, machine=HOSTILE
        )
        result = check(
            "LOG-1",
            Status.PASSED,
            evidence={HOSTILE: HOSTILE, "timeline": [[1, HOSTILE, HOSTILE, HOSTILE, HOSTILE]]},
        )
        page = report_to_html(attrs.evolve(hostile, checks=(*hostile.checks, result)))

        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", page)

    @staticmethod
    def text(page: str) -> str:
        body = page.partition("<body>")[2]
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", body)))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
class TestInABrowser:
    @staticmethod
    def run(tmp_path: Path, page: Path, *arguments: str) -> str:
        done = subprocess.run(
            [
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--user-data-dir={tmp_path / 'profile'}",
                *arguments,
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize(("scheme", "is_dark"), [("1", False), ("0", True)])
    def test_is_drawn_in_light_and_dark(self, scheme: str, is_dark: bool, tmp_path: Path) -> None:
        page, shot = tmp_path / "r.html", tmp_path / "shot.png"
        page.write_text(report_to_html(mixed_report()))

        self.run(
            tmp_path,
            page,
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={shot}",
            "--window-size=700,900",
        )

        (width, height), pixels = png_pixels(shot, rows=260)
        assert (width, height) == (700, 900)
        colours = Counter(pixels)
        assert len(colours) > 100  # text has many shades; a blank page has one
        (commonest, _), *_ = colours.most_common(1)
        assert (sum(commonest) < 3 * 64) is is_dark
        corner = pixels[0]
        assert (sum(corner) < 3 * 64) is is_dark

    def test_fits_a_phone_and_runs_no_script(self, tmp_path: Path) -> None:
        frames = "".join(
            f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
            for page in (report_to_html(mixed_report()),)
            for width in (360, 1280)
        )
        wrapper = tmp_path / "wrapper.html"
        wrapper.write_text(
            f"""<!doctype html>{frames}<pre></pre><script>
            onload = () => {{
              const frames = [...document.querySelectorAll("iframe")];
              document.querySelector("pre").textContent = JSON.stringify(frames.map(f => [
                f.contentDocument.documentElement.clientWidth,
                f.contentDocument.documentElement.scrollWidth,
                f.contentDocument.title,
                f.contentDocument.querySelectorAll("script, img, link").length,
                f.contentDocument.querySelectorAll("details[open] pre").length,
              ]));
              frames.forEach(f => f.remove());
            }}</script>"""
        )

        dom = self.run(tmp_path, wrapper, "--dump-dom")

        measured = json.loads(html.unescape(re.findall("<pre>(.*?)</pre>", dom)[0]))
        assert len(measured) == 2
        for client_width, scroll_width, title, strangers, told in measured:
            assert scroll_width <= client_width
            assert title == "failed: acme 2.3.0, dengine_sm conformance"
            assert strangers == 0
            assert told > 10


def png_pixels(path: Path, *, rows: int) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """Return the size of a PNG, and the pixels of its first rows."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    offset, packed, size, channels = 8, b"", (0, 0), 0
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        if kind == b"IHDR":
            *size_, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            size, channels = (size_[0], size_[1]), {2: 3, 6: 4}[colour]
            assert (depth, interlaced) == (8, 0)
        elif kind == b"IDAT":
            packed += body
        offset += 12 + length
    stride = size[0] * channels
    raw = zlib.decompressobj().decompress(packed, (stride + 1) * rows)
    above = bytearray(stride)
    pixels: list[tuple[int, int, int]] = []
    for start in range(0, (stride + 1) * rows, stride + 1):
        above = unfiltered(raw[start], raw[start + 1 : start + 1 + stride], above, channels)
        columns = (above[n::channels] for n in range(3))
        pixels += zip(*columns, strict=True)
    return size, pixels


def unfiltered(kind: int, line: bytes, above: bytearray, step: int) -> bytearray:
    """Undo a PNG row filter (RFC 2083 §6)."""
    out = bytearray(line)
    if kind == 0:
        return out
    for n in range(len(out)):
        left = out[n - step] if n >= step else 0
        corner = above[n - step] if n >= step else 0
        up = above[n]
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = up
        elif kind == 3:
            guess = (left + up) // 2
        else:
            estimate = left + up - corner
            guess = min((left, up, corner), key=lambda value: abs(estimate - value))
        out[n] = (out[n] + guess) & 0xFF
    return out
