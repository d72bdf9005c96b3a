import functools

import pytest

from surgery.core.registering import check_name_free, same_definition


def definition():
    def function():
        pass

    return function


def test_the_same_definition_made_again():
    one, two = definition(), definition()
    assert one is not two
    assert same_definition(one, two)
    assert same_definition((one, None), (two, None))
    assert not same_definition((one, None), (two, one))
    assert not same_definition(one, definition)
    two.__module__ = "elsewhere"
    assert not same_definition(one, two)


def test_what_has_no_name_is_the_same_as_itself_alone():
    one, two = functools.partial(print), functools.partial(print)
    assert same_definition(one, one)
    assert not same_definition(one, two)


def test_a_name_is_free_for_its_own_definition_alone():
    check_name_free("x", definition(), None)
    check_name_free("x", definition(), definition())
    with pytest.raises(ValueError, match="x is registered already, by mine"):
        check_name_free("x", definition, definition(), ", by mine")
