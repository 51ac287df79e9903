"""Recipes as values: equal, hashed, printed, saved, loaded, and refused by the key."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spectral_engine as se
from spectral_engine.recipe.presets import PRESETS, as_recipe, as_recipes, recipe_of_text

share = st.floats(0, 0.99)
group = st.sampled_from(["tensor", "row"])
floor = st.none() | st.floats(0, 1)
methods = st.one_of(
    st.just(se.Magnitude()),
    st.builds(se.Randomized, law=st.sampled_from(["l1", "l2", "bernstein"]), rescale=st.booleans()),
    st.builds(se.Randomized, law=st.just("hybrid"), law_parameter=st.none() | st.floats(0, 1)),
    st.builds(se.Principal, rank=st.none() | st.integers(1, 99), mixture=st.floats(0, 1)),
    st.builds(se.Aligned, rank=st.none() | st.integers(1, 99)),
)
shared = st.one_of(
    *(st.builds(kind, st.none() | share, floor=floor) for kind in (se.Global, se.ERK, se.Spectral))
)
budgets = st.one_of(
    st.builds(se.Uniform, st.none() | share, group=group),
    *(
        st.builds(kind, st.none() | share, floor=floor, group=group)
        for kind in (se.Global, se.ERK, se.Spectral)
    ),
    st.builds(se.MaxError, share, together=st.booleans(), floor=floor, group=group),
)
refits = st.none() | st.one_of(
    st.just(se.BiasCorrection()),
    *(
        st.builds(kind, bias_correction=st.booleans())
        for kind in (se.Scale, se.SpectralRefit, se.LeastSquares, se.SparseGPT, se.ALPS)
    ),
)
names = st.text("ab.*[]:\"'\n", min_size=1, max_size=6).filter(lambda text: text[:3] != "re:")
parts = st.lists(names, min_size=1, max_size=3, unique=True)
selects = st.builds(
    se.Select,
    st.none() | st.lists(names, max_size=3),
    st.none() | st.lists(names, max_size=3),
    split=st.none()
    | st.dictionaries(names, parts | st.dictionaries(names, st.integers(1, 9), min_size=1)),
)
recipes = st.builds(
    se.Recipe,
    methods,
    budget=budgets,
    refit=refits,
    select=selects,
    calibrated=st.booleans(),
) | st.builds(
    se.Recipe, st.just(se.Magnitude()),
    budget=st.builds(se.Pattern, st.just("4x8"), shared=st.none() | shared) | st.just(
        se.Pattern("2:4")), refit=refits,
)  # fmt: skip


@given(recipes)
def test_plain_values_and_back(recipe):
    """Catches a part that to_dict forgets, or that JSON cannot hold, and recipes that are equal
    but hash otherwise."""
    plain = json.loads(json.dumps(recipe.to_dict()))
    found = se.Recipe.from_dict(plain)
    assert found == recipe
    assert hash(found) == hash(recipe)
    assert "\n" not in repr(recipe)


@given(st.lists(recipes, min_size=1, max_size=3))
def test_files_and_back(tmp_path_factory, several):
    """Catches TOML that reorders or escapes a pattern, and a file of several read as one."""
    path = tmp_path_factory.mktemp("recipes") / "recipe.toml"
    se.save_recipes(several, path)
    assert se.load_recipes(path) == several
    if len(several) == 1:
        assert se.Recipe.load(path) == several[0]
    else:
        with pytest.raises(ValueError, match=r"recipe\.toml: expected one recipe; got \d"):
            se.Recipe.load(path)


def test_a_file_by_hand(tmp_path):
    """Catches the short spelling of a part, a name alone, that is not understood."""
    path = tmp_path / "recipe.toml"
    path.write_text('method = "magnitude"\nbudget = {name = "erk", sparsity = 0.9}\nrefit = "alps"')
    found = se.Recipe.load(path)
    assert found == se.Recipe(se.Magnitude(), budget=se.ERK(0.9), refit=se.ALPS())
    assert recipe_of_text(str(path)) == [found]


def test_an_existing_file_is_kept(tmp_path):
    """Catches a recipe written over another one unasked."""
    path = tmp_path / "recipe.toml"
    se.Recipe().save(path)
    with pytest.raises(FileExistsError):
        se.Recipe(se.Aligned()).save(path)
    assert se.Recipe.load(path) == se.Recipe()
    se.Recipe(se.Aligned()).save(path, force=True)
    assert se.Recipe.load(path) == se.Recipe(se.Aligned())


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("budget = {name = 'erk', floor = 2}", ValueError, "budget.floor: expected a number in"),
        ("budget = {name = 'uniform', floor = 0.1}", ValueError, "budget.floor: .*another key"),
        ("budget = {name = 'max-error'}", ValueError, "budget.error: expected a value; got none"),
        ("budget = {name = 'pattern', shape = '4x4', shared = 'nope'}", ValueError,
         "budget.shared: expected one of uniform"),
        ("method = 'nope'", ValueError, "method: expected one of magnitude, .*got 'nope'"),
        ("method = 3", TypeError, "method: expected a name, or a table with a name; got 3"),
        ("method = {name = 'principal', rank = true}", TypeError, "method.rank: expected an int"),
        ("refit = {name = 'alps', bias = true}", ValueError, "refit.bias: .*another key"),
        ("select = {targets = 3}", TypeError, "select.targets: expected a string"),
        ("select = {ignore = 're:('}", ValueError, "select.ignore: expected a regular expression"),
        ("select = {split = {a = 3}}", TypeError, "select.split: expected a dictionary"),
        ("fallback = {refit = 'nope'}", ValueError, "fallback.refit: expected one of scale"),
        ("calibrated = 1", TypeError, "calibrated: expected True or False"),
        ("sparsity = 0.5", ValueError, "sparsity: expected one of method, budget, refit, select"),
        ("method = 'aligned", ValueError, "expected a recipe in TOML"),
        ("", ValueError, "expected a recipe; got an empty file"),
        ("recipe = 3", ValueError, r"recipe: expected \[\[recipe\]\] tables"),
        ("[[recipe]]\n[[recipe]]\nmethod = 'x'", ValueError, "recipe 2: method: expected one of"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_file_and_key(tmp_path, text, error, message):
    """Catches a key that is passed over, and a message that leaves the reader to search."""
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(error, match=rf"bad\.toml: .*{message}"):
        se.load_recipes(path)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: se.Recipe("magnitude"), TypeError, "method: expected a method such as Magnitude"),
        (lambda: se.Recipe(budget=0.9), TypeError, "budget: expected a budget such as Uniform"),
        (lambda: se.Recipe(refit="alps"), TypeError, "refit: expected None or a refit such as"),
        (lambda: se.Recipe(select="Linear"), TypeError, r"select: expected Select\(\.\.\.\)"),
        (lambda: se.Recipe(fallback=se.Recipe(refit=se.ALPS())), ValueError, "fallback: expected"),
        (lambda: se.Recipe(fallback="magnitude"), TypeError, "fallback: expected None or a Recipe"),
        (lambda: se.Recipe(refit=se.Refit()), TypeError, "refit: expected None or a refit"),
        (lambda: se.Recipe(se.Randomized(), budget=se.Pattern("4x4")), ValueError,
         "budget: blocks are kept, not drawn"),
        (lambda: se.Recipe(se.Randomized(law="am07"), budget=se.Pattern("2:4")), ValueError,
         "budget: N of M is drawn by law"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(make, error, message):
    """Catches a recipe that fails only once it has begun to prune."""
    with pytest.raises(error, match=message):
        make()


def test_presets_are_what_they_are_called():
    """Catches a preset that changes unnoticed."""
    magnitude = se.Magnitude()
    by_row = se.Uniform(group="row")
    assert {
        "magnitude": se.Recipe(magnitude),
        "randomized": se.Recipe(se.Randomized()),
        "principal": se.Recipe(se.Principal()),
        "aligned": se.Recipe(se.Aligned()),
        "spectral": se.Recipe(magnitude, budget=se.Spectral(), refit=se.SpectralRefit()),
        "wanda": se.Recipe(magnitude, budget=by_row, calibrated=True),
        "least-squares": se.Recipe(magnitude, budget=by_row, refit=se.LeastSquares()),
        "sparsegpt": se.Recipe(magnitude, refit=se.SparseGPT()),
        "alps": se.Recipe(magnitude, refit=se.ALPS()),
        "auto": se.Recipe(magnitude),
        "best": se.Recipe(
            magnitude, budget=se.ERK(group="row"), refit=se.ALPS(),
            reconstruction=se.Reconstruction(whole=128), fallback=se.Recipe(magnitude),
        ),
    } == PRESETS  # fmt: skip
    auto = se.preset("auto", 0.5, calibrated=True)
    alps = se.Recipe(magnitude, budget=se.ERK(0.5, group="row"), refit=se.ALPS())
    fallback = se.Recipe(magnitude)
    assert auto == replace(alps, reconstruction=se.Reconstruction(), fallback=fallback)
    assert se.Recipe.from_dict(auto.to_dict()) == auto


@pytest.mark.parametrize(("name", "whole"), [("auto", 16), ("best", 128)])
def test_a_model_of_blocks_alike_is_trained_as_a_whole(name, whole):
    """Catches ERK on a language model, which leaves its narrow layers dense, and a fit where the
    caller can carry none out."""
    found = as_recipe(name, 0.5, calibrated=True, alike=True)
    assert found.budget == se.Uniform(0.5, group="row")
    assert found.reconstruction == se.Reconstruction(steps=0, whole=whole)
    for alike in (False, True):
        plain = as_recipe(name, 0.5, calibrated=True, alike=alike, reconstructs=False)
        assert (plain.reconstruction is None) == (name == "auto")  # "best" is refused by the caller
        assert plain.refit == se.ALPS()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_the_inputs_it_needs(name):
    """Catches a calibrated method that runs without data, as something else than its name says."""
    needs = {"wanda", "least-squares", "sparsegpt", "alps", "best"}
    if name in needs:
        with pytest.raises(ValueError, match=f"calibration: '{name}' needs calibration inputs"):
            as_recipe(name)
    else:
        as_recipe(name)
    assert as_recipe(name, 0.5, calibrated=True).budget.target == 0.5


def test_what_stands_for_a_recipe():
    """Catches a method, a name or a list that is not taken for what it says."""
    assert as_recipe(se.Aligned(), 0.5) == se.Recipe(se.Aligned(), budget=se.Uniform(0.5))
    several = [se.Recipe(se.Aligned()), se.Magnitude(), "randomized"]
    assert [one.method for one in as_recipes(several, 0.5)] == [
        se.Aligned(), se.Magnitude(), se.Randomized(),
    ]  # fmt: skip
    for value, error, message in (
        ([], ValueError, "recipe: expected at least one"),
        (3, TypeError, "recipe: expected a Recipe, a method or a preset's name; got 3"),
        ("nope", ValueError, "recipe: expected one of magnitude, .*; got 'nope'"),
        (["magnitude", None], TypeError, "recipe: expected a Recipe"),
    ):
        with pytest.raises(error, match=message):
            as_recipes(value)
    with pytest.raises(ValueError, match=re.escape("recipe: expected one of magnitude")):
        recipe_of_text("nope")


def test_without_inputs():
    """Catches a refit that is kept for a layer whose inputs are unknown, or a data-free one lost
    with its bias correction."""
    assert se.Recipe(refit=se.ALPS()).without_inputs() == se.Recipe()
    assert se.Recipe(refit=se.BiasCorrection()).without_inputs() == se.Recipe()
    assert se.Recipe(refit=se.Scale(bias_correction=True)).without_inputs() == se.Recipe(
        refit=se.Scale()
    )
    kept = se.Recipe(refit=se.LeastSquares(bias_correction=True)).without_bias_correction()
    assert kept == se.Recipe(refit=se.LeastSquares())
    assert se.Recipe(refit=se.BiasCorrection()).without_bias_correction() == se.Recipe()


def test_auto_leaves_out_what_cannot_be_done():
    """Catches "auto" that is refused for a folder, or in a schedule, which reconstruct nothing."""
    assert as_recipe("auto", 0.5, calibrated=True, reconstructs=False).reconstruction is None
    assert as_recipe("auto", 0.5, calibrated=True).reconstruction == se.Reconstruction()
    given = se.Recipe(reconstruction=se.Reconstruction())
    assert as_recipe(given, calibrated=True, reconstructs=False) == given
