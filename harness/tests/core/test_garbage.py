"""Objects that stay: nothing is collected while they are made, and they are not looked at again."""

import gc

from harness.core.garbage import lasting_objects


def test_what_exists_at_the_end_is_frozen_and_collection_is_on_again():
    before = gc.get_freeze_count()
    try:
        with lasting_objects():
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_collection_stays_off_where_it_was_off():
    gc.disable()
    try:
        with lasting_objects():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
