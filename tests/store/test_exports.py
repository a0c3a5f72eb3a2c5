import prompts
import store
import train


def test_the_names_that_outsiders_use_are_these() -> None:
    assert sorted(store.__all__) == [
        "Gr2Error",
        "InputError",
        "Put",
        "Session",
        "SnapshotError",
        "Store",
        "StoreBusyError",
        "StoreError",
        "TeacherError",
    ]
    assert sorted(prompts.__all__) == [
        "Candidate",
        "ParseFailure",
        "ParseReason",
        "ParsedCompletion",
        "RerankTask",
        "ShownItem",
        "Template",
        "completion_schema",
        "find_sids",
        "list_templates",
        "load_template",
        "parse_completion",
        "parse_sid",
        "render_completion",
        "render_sid",
    ]
    assert train.__all__ == ["load_snapshot"]


def test_every_name_is_there() -> None:
    for package in (store, prompts, train):
        assert all(hasattr(package, name) for name in package.__all__)
