"""The loss of distillation against the plain formula in autograd."""

import pytest
import torch
from torch import Tensor

from drpruning.distillation import TopTokens, distillation_loss, log_probabilities

N, V = 13, 29


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and of a teacher, and labels of which some do not count."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(N, V, generator=generator) for _ in "ab")
    labels = torch.randint(V, (N,), generator=generator)
    labels[[2, 7]] = -100
    return student, teacher, labels


def _plain(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    weight: float,
    temperature: float,
    k: int | None,
) -> Tensor:
    """The formula of the docstring, written out, in float64."""
    counted = labels != -100
    entropy = torch.nn.functional.cross_entropy(student, labels)
    p = (teacher[counted] / temperature).softmax(-1)
    q = (student[counted] / temperature).softmax(-1)
    if k is not None:
        ids = p.topk(k).indices
        p, q = (
            torch.cat([r.gather(-1, ids), 1 - r.gather(-1, ids).sum(-1, True)], -1) for r in (p, q)
        )
    divergence = (p * (p / q).log()).sum(-1).mean()
    return (1 - weight) * entropy + weight * temperature**2 * divergence


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [None, 1, 5, V - 1])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_those_of_the_formula(
    weight: float, k: int | None, temperature: float
) -> None:
    student, teacher, labels = _inputs()
    exact = student.double().requires_grad_()
    expected = _plain(exact, teacher.double(), labels, weight, temperature, k)
    expected.backward()
    leaf = student.clone().requires_grad_()
    target = log_probabilities(teacher, temperature, k)

    def rows_of(rows: slice) -> Tensor | TopTokens:
        return target[rows] if isinstance(target, Tensor) else TopTokens(*(t[rows] for t in target))

    found = distillation_loss(
        leaf * 1.0, labels, rows_of, weight=weight, temperature=temperature, chunk=4
    )
    (3 * found.loss).backward()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(leaf.grad / 3, exact.grad.float(), rtol=1e-4, atol=1e-7)
    assert found.tokens == N - 2
    assert found.cross_entropy[2] == found.divergence[7] == 0


def test_top_tokens_of_the_complete_vocabulary_equal_it() -> None:
    student, teacher, labels = _inputs()
    results = []
    for k in (None, V):
        leaf = student.clone().requires_grad_()
        target = log_probabilities(teacher, 2.0, k)
        found = distillation_loss(leaf * 1.0, labels, lambda _, t=target: t, temperature=2.0)
        found.loss.backward()
        results.append((found.divergence, leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_gradient() -> None:
    student, _, labels = _inputs()
    leaf = student.clone().requires_grad_()
    target = log_probabilities(student)
    found = distillation_loss(leaf * 1.0, labels, lambda rows: target[rows], weight=1.0)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(0, abs=1e-6)
    assert leaf.grad.abs().max() < 1e-6


def test_a_token_that_the_teacher_rules_out_costs_nothing() -> None:
    student, teacher, labels = _inputs()
    teacher[:, 3] = -torch.inf
    leaf = student.clone().requires_grad_()
    target = log_probabilities(teacher)
    found = distillation_loss(leaf * 1.0, labels, lambda rows: target[rows])
    found.loss.backward()
    assert torch.isfinite(found.loss)
    assert torch.isfinite(leaf.grad).all()


def test_logits_that_autograd_still_needs_are_not_silently_lost() -> None:
    student, teacher, labels = _inputs()
    leaf = student.clone().requires_grad_()
    logits = leaf.exp()  # whose derivative is its value
    target = log_probabilities(teacher)
    found = distillation_loss(logits, labels, lambda rows: target[rows])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.loss.backward()


def test_what_does_not_count_may_be_infinite() -> None:
    student, teacher, labels = _inputs()
    target = log_probabilities(teacher)
    results = []
    for infinite in (False, True):
        leaf = student.clone()
        if infinite:
            leaf[2, 0], leaf[7] = -torch.inf, torch.nan
        leaf.requires_grad_()
        found = distillation_loss(leaf * 1.0, labels, lambda rows: target[rows])
        found.loss.backward()
        results.append((found.loss.detach(), found.cross_entropy, found.divergence, leaf.grad))
    torch.testing.assert_close(results[1], results[0])


def test_a_label_that_is_no_token_is_an_error() -> None:
    student, teacher, labels = _inputs()
    labels[4] = -1
    with pytest.raises(RuntimeError, match="out of bounds"):
        distillation_loss(student, labels, lambda rows: log_probabilities(teacher[rows]))


def test_a_second_backward_pass_is_refused() -> None:
    """It would multiply the gradient, which lies in the logits' memory, a second time."""
    student, teacher, labels = _inputs()
    leaf = student.requires_grad_()
    found = distillation_loss(leaf * 1.0, labels, lambda rows: log_probabilities(teacher[rows]))
    (0.5 * found.loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        found.loss.backward()


def test_no_second_array_of_tokens_by_vocabulary_lives() -> None:
    tokens, vocabulary, chunk = 512, 4096, 16
    logits = torch.randn(tokens, vocabulary)
    teacher = torch.randn(tokens, vocabulary)
    labels = torch.zeros(tokens, dtype=torch.long)
    leaf = logits.clone().requires_grad_()
    output = leaf * 1.0
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        loss = distillation_loss(
            output, labels, lambda rows: log_probabilities(teacher[rows]), chunk=chunk
        ).loss
    assert torch.isfinite(loss)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < output.numel() * 4 / 2
