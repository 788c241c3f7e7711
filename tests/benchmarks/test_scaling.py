"""The page of scaling keeps the rows that were not planned anew."""

from benchmarks import scaling

BEFORE, AFTER = "# Scaling\n", "\nWhich mesh\n"


def line(case, said):
    size = f"8x{case.fsdp}x{case.tensor}"
    return f"| {case.config} | {case.topology} | {case.batch} | {size} | {said} |"


def test_a_case_names_its_file_and_its_command(tmp_path):
    case = scaling.PAPER[1]
    assert case.name == "stage2_flant5xxl_v5e-16x16_1536_f16t1_none"
    command = case.command(tmp_path)
    assert "--config.model.remat=none" in command
    assert command[-4:] == ["--topology", "v5e:16x16", "--json", str(tmp_path)]


def test_rows_without_a_plan_stay_and_unknown_ones_go(tmp_path, monkeypatch):
    one, two = scaling.PAPER[0], scaling.PAPER[1]
    assert one.is_told_by(line(one, "yes")) and not one.is_told_by(line(two, "yes"))
    other = scaling.Case(one.config, one.topology, one.batch, fsdp=3)
    head = f"{scaling.HEADER}\n{scaling.RULE}\n"
    tables = (f"{line(two, 'no')}\n{line(other, 'no')}\n{line(one, 'yes')}\n", "")
    expected = (f"{line(one, 'yes')}\n{line(two, 'no')}\n", "")
    page = lambda bodies: (
        BEFORE
        + "".join(
            f"<!-- {mark} -->\n{head}{body}<!-- end -->{AFTER}"
            for mark, body in zip(("paper", "curve"), bodies, strict=True)
        )
    )
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "scaling.md")
    scaling.PAGE.write_text(page(tables))
    scaling.write_page(tmp_path)
    assert scaling.PAGE.read_text() == page(expected)
