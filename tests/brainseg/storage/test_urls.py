from __future__ import annotations

from pathlib import Path

from brainseg.storage.urls import is_url, join_location, name_of, to_location

URL = "s3://bucket/studies?endpoint_override=127.0.0.1:9&scheme=http"


def test_a_location_below_a_url_is_named_before_the_query() -> None:
    joined = "s3://bucket/studies/lite?endpoint_override=127.0.0.1:9&scheme=http"
    assert join_location(URL, "lite") == joined
    assert join_location(Path("results"), "lite") == Path("results/lite")
    assert name_of(joined) == "lite"
    assert name_of("weights/lite?.safetensors") == "lite?.safetensors"


def test_paths_and_urls_are_told_apart() -> None:
    assert is_url(URL) and to_location(URL) == URL
    assert not is_url("data/kaggle_3m") and to_location("data") == Path("data")
