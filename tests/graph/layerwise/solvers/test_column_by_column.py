import re

import pytest
import torch

from bitwright.graph import GraphError
from bitwright.graph.layerwise.solvers.column_by_column import ColumnRounder, check_block_size, working_dtype
from tests.graph.layerwise.solvers.problems import made, per_group


@pytest.mark.parametrize("block_size", [1, 4, 128])
def test_columns_take_in_earlier_errors(block_size):
    problem = made(groups=2, inputs=7, grid=lambda weight: per_group(weight, 2))
    feedback = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rounder = ColumnRounder(problem.weight, feedback, 2 * problem.weight)
    rounder.round(0, 3, problem.grid.columns(0, 3), block_size)
    rounder.round(3, 7, problem.grid.columns(3, 7), block_size)
    errors = 2 * problem.weight - rounder.result()
    targets = problem.weight + errors @ feedback.tril(-1).mT
    torch.testing.assert_close(rounder.result(), problem.grid.nearest(targets), rtol=0, atol=1e-12)


def test_current_weights_are_the_best_for_what_is_rounded():
    """The normal equations: with the first columns as they are, no change of the others lowers the loss."""
    problem = made(inputs=6, outputs=2)
    upper = torch.linalg.cholesky(problem.gram.flip(-2, -1)).flip(-2, -1)
    rounder = ColumnRounder(problem.weight, (upper / upper.diagonal(dim1=1, dim2=2).unsqueeze(1)).mT.contiguous())
    rounder.round(0, 2, problem.grid)
    best = torch.cat([rounder.result()[:, :, :2], rounder.current(2, 6)], 2)
    slope = (best - problem.weight) @ problem.gram
    assert float(slope[:, :, 2:].abs().max()) < 1e-12 < 1e-3 < float(slope[:, :, :2].abs().max())
    torch.testing.assert_close(rounder.current(2, 4), rounder.current(2, 6)[:, :, :2])


def test_working_dtype():
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    assert [working_dtype(torch.zeros(1, dtype=dtype)) for dtype in dtypes] == [*[torch.float32] * 3, torch.float64]


@pytest.mark.parametrize("block_size", [0, -1, 1.0, True, None])
def test_block_size_is_checked(block_size):
    message = (
        f"gptq: block_size={block_size!r} is not a whole number of columns, 1 or more; it decides nothing but the time."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check_block_size("gptq", block_size)
