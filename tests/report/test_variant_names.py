from tencrop.report.variant_names import variant_names


def config(seed=0, **settings):
    return {"seed": seed, "data": {"name": "digits", "root": "a"}, "optimizer": {"lr": 0.1}, **settings}


def test_a_single_variant_has_the_experiments_name():
    assert variant_names("lenet5", {"aa": config()}) == {"aa": "lenet5"}


def test_an_ablation_names_what_each_variant_changes():
    base, no_lrn = config(model={"kwargs": {"width": 0.25}}), config(model={"kwargs": {"width": 0.25, "lrn": False}})
    lr = config(model={"kwargs": {"width": 0.25}}, optimizer={"lr": 0.2})
    assert variant_names("alexnet", {"aa": base, "bb": no_lrn, "cc": lr}) == {
        "aa": "alexnet (aa)",
        "bb": "alexnet (bb, model.kwargs.lrn=false)",
        "cc": "alexnet (cc, optimizer.lr=0.2)",
    }


def test_of_two_variants_both_are_named():
    names = variant_names("lenet5", {"aa": config(), "bb": config(optimizer={"lr": 0.2})})
    assert names == {"aa": "lenet5 (aa, optimizer.lr=0.1)", "bb": "lenet5 (bb, optimizer.lr=0.2)"}


def test_seed_and_folders_do_not_tell_variants_apart():
    # equal settings, two hashes: the same recipe under the code of two versions
    names = variant_names("lenet5", {"aa": config(), "bb": config(seed=1, data={"name": "digits", "root": "b"})})
    assert names == {"aa": "lenet5 (aa)", "bb": "lenet5 (bb)"}


def test_many_settings_are_counted():
    schedule = {"name": "step", "milestones": [3], "gamma": 0.1, "warmup_epochs": None}
    names = variant_names("lenet5", {"aa": config(), "bb": config(), "cc": config(schedule=schedule)})
    assert names["cc"] == "lenet5 (cc, schedule.name=step, schedule.milestones=[3], schedule.gamma=0.1, 1 more)"
