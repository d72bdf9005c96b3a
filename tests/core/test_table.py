from html.parser import HTMLParser

import torch

import surgery
from surgery.calibration.report import Report, Row
from surgery.core.table import html_table
from surgery.planning.sites import Skipped

VOID = {"br", "hr"}


class Strict(HTMLParser):
    """Raises unless all elements are closed in order; gathers the texts of cells by row."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_html_is_escaped_and_whole():
    page = Strict(
        html_table(("<a>", "b & c"), [("<script>", '"x"'), ("1", 2)], right=(1,), caption="<i>", lines=["<p>"])
    )
    assert page.rows == [["<a>", "b & c"], ["<script>", '"x"'], ["1", "2"]]
    assert "<p>" in page.text


def test_plan_cost_and_report_have_notebook_faces():
    model = surgery.create("cifar_resnet", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    plan = surgery.plan(model)
    page = Strict(plan._repr_html_())
    assert page.rows[0] == ["site", "role", "channels", "ratio", "note"]
    assert [row[0] for row in page.rows[1:]] == [row.site for row in plan.sites]
    assert f"{len(plan.sites)} converted" in page.text
    cost = surgery.cost(model)
    page = Strict(cost._repr_html_())
    assert page.rows[-1][0] == "total"
    assert "memory: bytes that operations write" in page.text
    report = Report((Row("a<b>", "start", 4, note="as it was"),), (Skipped("c", "too <large>"),))
    page = Strict(report._repr_html_())
    assert page.rows == [
        ["layer", "fitted to", "rows", "ridge", "R² before", "R² after", "note"],
        ["a<b>", "start", "4", "", "", "", "as it was"],
    ]
    assert "not fitted: c: too <large>" in page.text


def test_the_reports_notes_have_a_header():
    model = surgery.create("cifar_resnet", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    report = surgery.calibrate(surgery.convert(model), model, torch.randn(8, 3, 32, 32), progress=False)
    assert str(report).splitlines()[0].split()[-1] == "note"


def test_a_cost_says_what_memory_counts():
    lines = str(surgery.cost(surgery.create("test_resnet"), 32)).splitlines()
    assert lines[1].startswith("memory: bytes that operations write")
