"""WordNet ids become words, other names lose their underscores."""

import os

from tencrop.data.sources.class_names import label_names


def test_wordnet_ids_become_words():
    assert label_names(["n01440764", "n02123045"]) == ["tench", "tabby"]
    assert label_names(["sea_snake", "7"]) == ["sea snake", "7"]


def test_a_name_that_is_not_utf8_can_be_drawn_and_written():
    names = label_names([os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe8")])
    assert len(set(names)) == 2 and all(name.encode() for name in names)
