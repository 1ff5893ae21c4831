"""The data sets known by name: which files they need, where they come from, and under which terms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUPLENS_TERMS = "GroupLens: research use only, no redistribution; cite Harper and Konstan, TiiS 5(4), 2015"


@dataclass(frozen=True, kw_only=True)
class Known:
    """One known data set; ``files`` are needed, ``optional`` ones are used when present."""

    description: str
    users: int
    items: int
    interactions: int
    files: tuple[str, ...]
    optional: tuple[str, ...]
    source: str
    terms: str

    def as_dict(self, name: str) -> dict[str, Any]:
        """Return one row of ``fedrecall data list``."""
        return {
            "name": name,
            "description": self.description,
            "users": self.users,
            "items": self.items,
            "interactions": self.interactions,
            "source": self.source,
            "terms": self.terms,
        }


KNOWN = {
    "ml-100k": Known(
        description="MovieLens 100K: film ratings 1-5, 1997-1998",
        users=943,
        items=1682,
        interactions=100_000,
        files=("u.data", "u.item"),
        optional=("u.user",),
        source="fetched on first use",
        terms=GROUPLENS_TERMS,
    ),
    "ml-1m": Known(
        description="MovieLens 1M: film ratings 1-5, 2000-2003",
        users=6040,
        items=3883,
        interactions=1_000_209,
        files=("ratings.dat", "movies.dat"),
        optional=("users.dat",),
        source="--data-path FOLDER, from grouplens.org/datasets/movielens/1m",
        terms=GROUPLENS_TERMS,
    ),
    "movietweetings": Known(
        description="MovieTweetings 100K: film ratings 0-10 from Twitter, 2013",
        users=16_554,
        items=10_506,
        interactions=100_000,
        files=("ratings.dat", "movies.dat"),
        optional=(),
        source="--data-path FOLDER, from github.com/sidooms/MovieTweetings",
        terms="MIT",
    ),
    "steam": Known(
        description="Steam: game purchases, and hours of play, without times",
        users=12_393,
        items=5155,
        interactions=200_000,
        files=("game_purchase.dat", "game_play.dat", "item_info.dat"),
        optional=(),
        source="--data-path FOLDER",
        terms="none stated: local use only",
    ),
}


def missing_files(name: str, folder: Path) -> list[str]:
    """Return the needed files that ``folder`` lacks (for ml-100k: in the official or the RecBole layout)."""
    if name == "ml-100k" and (folder / "ml-100k.inter").is_file():
        return [] if (folder / "ml-100k.item").is_file() else ["ml-100k.item"]
    return [file for file in KNOWN[name].files if not (folder / file).is_file()]
