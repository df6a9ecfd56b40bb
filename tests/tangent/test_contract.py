"""What a linearised model promises beside its numbers: names, sharing, what it leaves alone and refuses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers import zoo
from helpers.zoo import ZOO, at, classifier, close, direction, normal
from tauspan import models
from tauspan.core.errors import BaseMismatchError, MismatchError, ModelError, NonFiniteError, UsageError
from tauspan.models import Encoder, core
from tauspan.tangent import linearize
from tauspan.vector import TaskVector

# -- names ---------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Children and a parameter named like the methods and attributes of a linearised model."""

    def __init__(self) -> None:
        super().__init__()
        self.tangent = nn.Linear(3, 4)
        self.base = nn.ModuleDict({"tau": nn.Linear(4, 4), "point": nn.Linear(4, 2)})
        self.finish = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base["point"](torch.tanh(self.base["tau"](torch.tanh(self.tangent(x))))) + self.finish


@pytest.mark.parametrize("name", ZOO)
def test_state_dict_has_the_original_names_in_their_order(name: str) -> None:
    model = ZOO[name].make().model
    lin = linearize(model)
    prefixes = getattr(model, "prefixes", ()) or ("",)
    original = [key for key, _ in core(model)[0].named_parameters() if key.startswith(prefixes)]
    assert list(lin.tau) == original
    assert set(lin.state_dict()) == set(original) == {key for key, _ in lin.named_parameters()}


def test_names_of_our_own_methods_are_free_for_the_model() -> None:
    model = Awkward().double().eval()
    lin = linearize(model)
    tau = direction(lin)
    x = normal(5, 3)
    assert set(at(lin, tau).state_dict()) == {key for key, _ in model.named_parameters()}
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for key, parameter in moved.named_parameters():
            parameter.add_(1e-6 * tau[key])
        assert close((moved(x) - model(x)) / 1e-6, lin.tangent(x)[1], 1e-4)


def test_even_a_child_named_forward_keeps_its_name() -> None:
    model = Awkward()
    model.forward = nn.Linear(2, 2)  # torch allows it, and finds the method instead: only the names can work
    assert {"forward.weight", "forward.bias"} < set(linearize(model).state_dict())


def test_it_describes_itself_in_one_line() -> None:
    assert "Classifier, point='logits', 6 tensors" in repr(linearize(classifier(zoo.mlp())))


# -- sharing -------------------------------------------------------------------------------------------------


def test_theta0_is_the_bases_own_memory_and_never_requires_grad() -> None:
    model = zoo.bert().model
    known = dict(core(model)[0].named_parameters())
    theta0 = linearize(model).theta0()
    assert all(parameter.requires_grad for parameter in known.values())
    assert all(tensor.data_ptr() == known[key].data_ptr() for key, tensor in theta0.items())
    assert not any(tensor.requires_grad for tensor in theta0.values())


@pytest.mark.parametrize("point", ["encoder", "logits"])
def test_a_training_step_leaves_the_base_untouched(point: str) -> None:
    example = zoo.conv()
    base = classifier(example)
    base.encoder.backbone[0].train()  # neither dropout nor batch norm: allowed, and must stay
    base.encoder.backbone[3].requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    flags = [parameter.requires_grad for parameter in base.parameters()]
    modes = [layer.training for layer in base.modules()]

    lin = linearize(base, point=point)
    optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
    lin(*example.args).square().sum().backward()
    optimizer.step()
    assert all(bool(tau.detach().abs().sum() > 0) for tau in lin.tau.values())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    assert [layer.training for layer in base.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())


def test_a_base_put_back_into_training_mode_is_still_read_without_dropout() -> None:
    base = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).double().eval()
    lin = linearize(base)
    before = lin(normal(6, 4))
    base.train()
    assert torch.equal(lin(normal(6, 4)), before)
    assert all(layer.training for layer in base.modules())
    assert base[1].num_batches_tracked == 0


def test_a_failing_call_gives_modes_and_attention_settings_back() -> None:
    base = zoo.mlp().model.train()
    lin = linearize(base)
    with pytest.raises(RuntimeError, match="shape"):
        lin(normal(5, 3))
    assert all(layer.training for layer in base.modules())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("move", [lambda lin: lin.double(), lambda lin: lin.to(torch.float64)])
def test_moving_the_linearised_model_moves_its_base(move: Callable[[nn.Module], nn.Module]) -> None:
    base = zoo.mlp().model.float()
    own = list(base.parameters())
    lin = move(linearize(base))
    assert {tensor.dtype for tensor in (*lin.tau.values(), *base.parameters())} == {torch.float64}
    assert all(kept is now for kept, now in zip(own, base.parameters(), strict=True))
    assert lin(normal(5, 4)).dtype == torch.float64


def test_a_half_precision_base_keeps_tau_and_gradient_in_float32() -> None:
    base = zoo.mlp().model.to(torch.bfloat16)
    lin = linearize(base)
    lin(normal(5, 4).bfloat16()).sum().backward()
    assert {tau.dtype for tau in lin.tau.values()} == {tau.grad.dtype for tau in lin.tau.values()}
    assert {tau.dtype for tau in lin.tau.values()} == {torch.float32}
    assert {tensor.dtype for tensor in lin.theta0().values()} == {torch.bfloat16}


def test_a_deep_copy_has_a_base_of_its_own() -> None:
    lin = linearize(zoo.mlp().model)
    twin = copy.deepcopy(lin)
    assert twin.theta0()["0.weight"].data_ptr() != lin.theta0()["0.weight"].data_ptr()
    assert torch.equal(twin(normal(5, 4)), lin(normal(5, 4)))


# -- vectors in and out --------------------------------------------------------------------------------------


def test_tau_goes_out_as_a_vector_and_comes_back() -> None:
    base = classifier(zoo.mlp())
    lin = linearize(base, point="encoder")
    vector = at(lin, direction(lin)).task_vector("cats", seed=3)
    assert (vector.regime, vector.label, vector.info["seed"]) == ("linear", "cats", 3)
    assert vector.info["point"] == "encoder"
    assert vector.base == models.fingerprint_of(zoo.mlp().model)
    other = linearize(classifier(zoo.mlp()), point="encoder")
    other.load_task_vector(vector)
    assert torch.equal(other(normal(5, 4)), lin(normal(5, 4)))
    with torch.no_grad():
        lin.tau["0.weight"].zero_()
    assert vector.deltas["0.weight"].norm() > 0


def test_a_vector_of_another_base_is_refused_unless_asked_for() -> None:
    vector = linearize(zoo.mlp().model).task_vector()
    lin = linearize(zoo.stirred(zoo.mlp().model, seed=9))
    with pytest.raises(BaseMismatchError, match="starts from base"):
        lin.load_task_vector(vector)
    lin.load_task_vector(vector, check_base=False)


def test_a_vector_over_other_tensors_is_refused_with_their_names() -> None:
    model = zoo.mlp().model
    vector = linearize(model, "last:1").task_vector("last")
    lin = linearize(model)
    with pytest.raises(MismatchError, match=r"last lacks 4 of the linearised module's tensors \(0\.weight"):
        lin.load_task_vector(vector)
    with pytest.raises(MismatchError, match=r"0\.weight"):
        lin.tangent(normal(5, 4), vectors=[vector])
    with pytest.raises(MismatchError, match=r"'0\.weight' has shape"):
        lin.tangent(normal(5, 4), vectors=[lin.tau | {"0.weight": torch.zeros(2, 2)}])


def test_a_vector_with_nan_is_refused() -> None:
    lin = linearize(zoo.mlp().model)
    deltas = direction(lin) | {"2.bias": torch.full((5,), torch.nan)}
    with pytest.raises(NonFiniteError, match=r"'2\.bias'"):
        lin.load_task_vector(TaskVector(deltas, models.fingerprint_of(lin.base), "linear"))


def test_no_vectors_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match="empty"):
        linearize(zoo.mlp().model).tangent(normal(5, 4), vectors=[])


# -- refusals ------------------------------------------------------------------------------------------------


def test_two_parameters_in_one_memory_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = nn.Parameter(net[0].weight.detach())
    with pytest.raises(ModelError, match=r"'0\.weight' and '1\.weight' share memory"):
        linearize(net)


def test_parameters_that_overlap_in_memory_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight = nn.Parameter(net[0].weight.detach()[1:])
    with pytest.raises(ModelError, match=r"'0\.weight' and '1\.weight' share memory"):
        linearize(net)


def test_parameters_side_by_side_in_one_storage_are_fine() -> None:
    flat = torch.randn(12)
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False))
    net[0].weight, net[1].weight = (nn.Parameter(part.view(2, 3)) for part in flat.split(6))
    net[1].weight.data = net[1].weight.data.view(3, 2)
    assert list(linearize(net).tau) == ["0.weight", "1.weight"]


def test_active_dropout_is_refused_and_dropout_at_zero_is_not() -> None:
    with pytest.raises(ModelError, match=r"dropout '1' \(p=0\.1\) is active.*\.eval\(\)"):
        linearize(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    linearize(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))


def test_batch_norm_in_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"batch norm '1' is in training mode"):
        linearize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_batch_norm_without_running_statistics_is_refused_in_any_mode() -> None:
    with pytest.raises(ModelError, match=r"batch norm '1' keeps no running statistics"):
        linearize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval())


def test_linearising_twice_is_refused() -> None:
    lin = linearize(zoo.mlp().model)
    for again in (lin, Encoder(lin)):
        with pytest.raises(MismatchError, match="linearised already"):
            linearize(again)


@pytest.mark.parametrize(
    ("build", "point", "message"),
    [
        (lambda: zoo.mlp().model, "logits", "Sequential has no .* point 'logits': build a Classifier"),
        (lambda: zoo.bert().model, "logits", "Encoder has no .* point 'logits': build a Classifier"),
        (lambda: zoo.mlp().model, "encoder", "Sequential has no .* point 'encoder'.*output"),
        (lambda: classifier(zoo.mlp()), "logit", r"point='logit'\. Did you mean 'logits'"),
    ],
)
def test_a_point_that_the_model_lacks_is_refused(
    build: Callable[[], nn.Module], point: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        linearize(build(), point=point)


def test_a_choice_that_picks_nothing_names_the_nearest_parameter() -> None:
    with pytest.raises(UsageError, match=r"no parameter matches '0\.weigth'. Did you mean '0\.weight'"):
        linearize(zoo.mlp().model, ["0.weigth"])


def test_an_answer_without_a_tensor_is_refused() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    with pytest.raises(ModelError, match="the model returned tuple"):
        linearize(Pair(2, 2))(torch.ones(1, 2))
