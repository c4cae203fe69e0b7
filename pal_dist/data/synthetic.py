"""A small SYNTHETIC corpus for sst, para and sts in the very formats of the real files.

Made by rule from word lists, so that a first run needs no download. There is signal that a model must learn: a review's
class follows from its words' strength and from negation; a pair's similarity from how much of it was changed. Scores on
it say that training works, and nothing about real text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

from pal_dist.core.atomic_io import atomic_folder

SIZES = {"train": (1600, 1600, 1200), "dev": (240, 240, 200)}
"""Rows of sst, para and sts in each split."""

PRAISE = {
    2: [
        "a masterpiece",
        "breathtaking",
        "unforgettable",
        "a triumph",
        "brilliant",
        "superb",
        "dazzling",
        "magnificent",
    ],
    1: ["pleasant", "charming enough", "well made", "likeable", "solid", "engaging", "amusing", "worth a look"],
    0: ["an ordinary affair", "what it says it is", "a mixed bag", "neither here nor there", "average", "unremarkable"],
    -1: ["dull", "clumsy", "too long", "forgettable", "flat", "uneven and slow", "tired", "thin"],
    -2: ["a disaster", "unbearable", "atrocious", "an insult", "painful to watch", "hopeless", "dreadful", "worthless"],
}
REVIEWS = [
    "the {thing} is {verdict} .",
    "{person} gives us a {thing} that is {verdict} .",
    "as {kind} , the {thing} proves {verdict} .",
    "i found the {thing} {verdict} , and so will you .",
    "for all its noise , this {kind} is {verdict} .",
    "the {thing} by {person} turns out to be {verdict} .",
    "{person} and {person} make a {kind} whose {thing} is {verdict} from start to end .",
]
THINGS = ["film", "script", "story", "cast", "score", "ending", "camera work", "dialogue", "plot", "second half"]
PEOPLE = ["the director", "a young cast", "the writer", "an old hand", "the lead", "her crew", "the producer"]
KINDS = ["comedy", "thriller", "romance", "western", "documentary", "war film", "family film", "musical"]

ASK = [
    ("how do i {act} {object} ?", "what is the best way to {act} {object} ?"),
    ("how can someone {act} {object} ?", "how should i go about it to {act} {object} ?"),
    ("why is it hard to {act} {object} ?", "what makes it difficult to {act} {object} ?"),
    ("where can i learn to {act} {object} ?", "what is a good place for learning to {act} {object} ?"),
    ("how long does it take to {act} {object} ?", "how much time is needed to {act} {object} ?"),
]
ACTS = [
    ("repair", "fix"),
    ("buy", "purchase"),
    ("cook", "prepare"),
    ("clean", "wash"),
    ("sell", "get rid of"),
    ("build", "make"),
    ("understand", "get to know"),
    ("improve", "make better"),
    ("choose", "pick"),
    ("paint", "dye"),
]
OBJECTS = [
    "an old bicycle",
    "a wooden table",
    "rice noodles",
    "a used car",
    "the kitchen floor",
    "a small boat",
    "python programs",
    "my english",
    "a laptop for school",
    "the front door",
    "a family house",
    "fresh fish",
    "a winter coat",
    "the roof",
    "a bread oven",
    "a garden wall",
]

SCENE = (
    (
        ["a man", "a woman", "a boy", "two girls", "an old man", "a dog"],
        {
            "a man": "a guy",
            "a woman": "a lady",
            "a boy": "a young boy",
            "two girls": "a pair of girls",
            "an old man": "an elderly man",
            "a dog": "a puppy",
        },
    ),
    (
        ["is riding", "is washing", "is carrying", "is watching", "is painting", "is pulling"],
        {
            "is riding": "rides",
            "is washing": "washes",
            "is carrying": "carries",
            "is watching": "looks at",
            "is painting": "paints",
            "is pulling": "pulls",
        },
    ),
    (
        ["a horse", "a red car", "a small boat", "a heavy bag", "a white wall", "a child"],
        {
            "a horse": "a pony",
            "a red car": "a red vehicle",
            "a small boat": "a little boat",
            "a heavy bag": "a big bag",
            "a white wall": "a pale wall",
            "a child": "a kid",
        },
    ),
    (
        ["in the park", "near the river", "on the beach", "in the street", "behind the house", "in the snow"],
        {
            "in the park": "in a park",
            "near the river": "by the river",
            "on the beach": "at the beach",
            "in the street": "on the road",
            "behind the house": "at the back of the house",
            "in the snow": "on snow",
        },
    ),
)


def _review(random: Random) -> tuple[list[str], str]:
    label = random.randrange(5)
    strength, negated = label - 2, False
    if abs(strength) == 1 and random.random() < 0.4:
        strength, negated = -2 * strength, True  # not superb is a little bad, not dreadful a little good
    verdict = ("not " if negated else "") + random.choice(PRAISE[strength])
    text = random.choice(REVIEWS)
    for slot, choices in (("{thing}", THINGS), ("{person}", PEOPLE), ("{kind}", KINDS)):
        while slot in text:
            text = text.replace(slot, random.choice(choices), 1)
    return [text.replace("{verdict}", verdict)], str(label)


def _question_pair(random: Random) -> tuple[list[str], str]:
    label = random.randrange(2)
    first, second = random.sample(random.choice(ASK), 2)
    act, thing = random.choice(ACTS), random.choice(OBJECTS)
    act2, thing2 = act, thing
    if not label:  # near misses: another object, or another act
        if random.random() < 0.5:
            thing2 = random.choice([other for other in OBJECTS if other != thing])
        else:
            act2 = random.choice([other for other in ACTS if other != act])
    pair = [first.format(act=act[0], object=thing), second.format(act=act2[random.randrange(2)], object=thing2)]
    return pair, f"{label:.1f}"


def _scene_pair(random: Random) -> tuple[list[str], str]:
    likeness, same, other = 0.0, [], []
    for choices, near in SCENE:
        word = random.choice(choices)
        same.append(word)
        how = random.choices(("same", "near", "else"), (3, 2, 3))[0]
        replaced = random.choice([candidate for candidate in choices if candidate != word])
        other.append({"same": word, "near": near[word], "else": replaced}[how])
        likeness += {"same": 1.0, "near": 0.8, "else": 0.0}[how]
    return [" ".join(same) + " .", " ".join(other) + " ."], f"{5 * likeness / len(SCENE):.1f}"


FILES = (
    ("ids-sst", ("sentence",), "sentiment", _review),
    ("quora", ("sentence1", "sentence2"), "is_duplicate", _question_pair),
    ("sts", ("sentence1", "sentence2"), "similarity", _scene_pair),
)


def built_in_corpus(cache_dir: Path) -> Path:
    """The folder of the synthetic corpus, written at the first call; the same text on every machine."""
    folder = cache_dir / "synthetic-1"
    if not folder.is_dir():
        with atomic_folder(folder) as draft:
            for split, sizes in SIZES.items():
                for size, (stem, columns, label, make) in zip(sizes, FILES, strict=True):
                    random = Random(f"{stem}-{split}")
                    lines = ["\t".join(("", "id", *columns, label))]
                    for row in range(size):
                        texts, value = make(random)
                        name = hashlib.sha256(f"{stem}-{split}-{row}".encode()).hexdigest()[:25]
                        lines.append("\t".join((str(row), name, *texts, value)))
                    (draft / f"{stem}-{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
