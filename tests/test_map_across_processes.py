"""Work mapped across processes; `tests/audit/test_processes.py` launches several of them."""

import numpy as np
import pytest

from hf_unlearn.distributed import map_across_processes
from hf_unlearn.errors import UserError


def test_one_process_does_all_parts_in_order_and_passes_its_fault_on():
    done = []

    def work(number):
        done.append(number)
        if number == 3:
            raise UserError("part 3 is bad")
        return np.full(2, number)

    assert np.concatenate(map_across_processes(3, work)).tolist() == [0, 0, 1, 1, 2, 2]
    assert map_across_processes(0, work) == []
    with pytest.raises(UserError, match="part 3 is bad"):
        map_across_processes(6, work)
    assert done == [0, 1, 2, 0, 1, 2, 3]
