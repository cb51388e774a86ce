"""What cleaning keeps of a docstring, and what it drops."""

from __future__ import annotations

import pytest

from harness.data.prose import clean, is_prose

NUMPYDOC = """
    Return the evenly spaced numbers over a given interval.

    Parameters
    ----------
    start : array_like
        The starting value of the sequence,
        which is always included.

    Examples
    --------
    >>> np.linspace(2.0, 3.0, num=5)
    array([2.  , 2.25, 2.5 , 2.75, 3.  ])

    See :func:`~numpy.arange` for a **similar** function, or `the guide <https://x.org/y>`_ for more.

    .. code-block:: python

        x = secret_code(1)

    The next block is code as well::

        y = more_code(2)

    .. note:: This is a remark worth keeping.
"""


def test_sentences_stay_and_code_goes() -> None:
    assert clean(NUMPYDOC) == [
        "Return the evenly spaced numbers over a given interval.",
        "start: array_like The starting value of the sequence, which is always included.",
        "See arange for a similar function, or the guide for more.",
        "The next block is code as well:",
        "This is a remark worth keeping.",
    ]


def test_google_style_arguments_become_paragraphs() -> None:
    text = """Run the model on a batch of inputs.

    Args:
        ids (`torch.Tensor` of shape `(batch, length)`):
            Indices of the tokens in the vocabulary.
        mask (`torch.Tensor`, *optional*): Which tokens are real ones.

    ```python
    model(ids, mask)
    ```
    """
    assert clean(text) == [
        "Run the model on a batch of inputs.",
        "ids (torch.Tensor of shape (batch, length)): Indices of the tokens in the vocabulary.",
        "mask (torch.Tensor, optional): Which tokens are real ones.",
    ]


@pytest.mark.parametrize(
    "junk",
    [
        "======  =======\nname    value\n======  =======",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "$$\\sum_i x_i^2 = \\lVert x \\rVert^2$$",
        "x1 y2 z3 q_4 f(5) the of",
        "ab",
        "",
    ],
)
def test_tables_formulas_and_symbols_are_not_prose(junk: str) -> None:
    assert clean(junk) == []


def test_prose_needs_words_and_plain_ones() -> None:
    assert is_prose("This is a plain sentence.")
    assert not is_prose("one two three")
    assert not is_prose("a_b c_d e_f g_h this is also here")
