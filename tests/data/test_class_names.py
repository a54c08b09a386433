"""WordNet ids become words, other names lose their underscores."""

from tencrop.data.class_names import label_names


def test_wordnet_ids_become_words():
    assert label_names(["n01440764", "n02123045"]) == ["tench", "tabby"]
    assert label_names(["sea_snake", "7"]) == ["sea snake", "7"]
