"""One training step of each method in plain PyTorch, as a careful user would write it."""

from collections.abc import Callable

import torch

from benchmarks.peers import EPS, F, climb, cosines, kl, start_of

Net, Tensor = torch.nn.Module, torch.Tensor


def adversarial(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    net.eval()
    adv = climb(lambda adv: F.cross_entropy(net(adv), y, reduction='sum'), x, start_of(x), steps)
    net.train()
    return adv


def at(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    return F.cross_entropy(net(adversarial(net, x, y, steps)), y)


def trades(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    net.eval()
    with torch.no_grad():
        natural = net(x)
    adv = climb(lambda adv: kl(net(adv), natural), x, start_of(x), steps)
    net.train()
    logits = net(x)
    return F.cross_entropy(logits, y) + 6 * kl(net(adv), logits)


def trades_si(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    net.eval()
    adv = climb(lambda adv: F.cross_entropy(15 * cosines(net, adv), y), x, start_of(x), steps)
    net.train()
    logits, features = net(x), net.features(adv)
    cosine = F.linear(F.normalize(features), F.normalize(net.linear.weight))
    margin = F.cross_entropy(15 * (cosine - 0.2 * F.one_hot(y, 10)), y)
    return F.cross_entropy(logits, y) + 6 * kl(net.linear(features), logits) + 0.2 * margin


def mart(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    adv = adversarial(net, x, y, steps)
    logits, adv_logits = net(x), net(adv)
    natural, fooled = F.softmax(logits, 1), F.softmax(adv_logits, 1)
    others = fooled.masked_fill(F.one_hot(y, 10).bool(), 0).amax(1)
    boosted = F.cross_entropy(adv_logits, y) - torch.log(1.0001 - others + 1e-12).mean()
    weight = 1 - natural.gather(1, y[:, None]).squeeze(1)
    each = (natural * (torch.log(natural + 1e-12) - torch.log(fooled + 1e-12))).sum(1)
    return boosted + 6 * (each * weight).mean()


def rfgsm(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    net.train()
    adv = climb(lambda adv: F.cross_entropy(net(adv), y), x, start_of(x), 1, 1.25 * EPS)
    return F.cross_entropy(net(adv), y)


def nfgsm(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    net.train()
    noisy = torch.clamp(x + torch.empty_like(x).uniform_(-2 * EPS, 2 * EPS), 0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(noisy), y, reduction='sum'), noisy)
    return F.cross_entropy(net(torch.clamp(noisy.detach() + EPS * gradient.sign(), 0, 1)), y)


def gradalign(net: Net, x: Tensor, y: Tensor, steps: int) -> Tensor:
    net.train()
    point = x.clone().requires_grad_()
    (natural,) = torch.autograd.grad(F.cross_entropy(net(point), y, reduction='sum'), point)
    adv = torch.clamp(x + EPS * natural.sign(), 0, 1)
    near = (x + torch.empty_like(x).uniform_(-EPS, EPS)).requires_grad_()
    loss = F.cross_entropy(net(near), y, reduction='sum')
    (random,) = torch.autograd.grad(loss, near, create_graph=True)
    aligned = F.cosine_similarity(random.flatten(1), natural.flatten(1)).mean()
    return F.cross_entropy(net(adv), y) + 0.2 * (1 - aligned)


METHODS: dict[str, Callable[[Net, Tensor, Tensor, int], Tensor]] = {
    'at': at,
    'trades': trades,
    'tradessi': trades_si,
    'mart': mart,
    'rfgsm': rfgsm,
    'nfgsm': nfgsm,
    'gradalign': gradalign,
}


def stepper(method: str, net: Net, x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    """A function that makes one training step with SGD."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    delta = torch.zeros_like(x)

    def call() -> None:
        optimiser.zero_grad(set_to_none=True)
        METHODS[method](net, x, y, steps).backward()
        optimiser.step()

    def free() -> None:  # one backward pass moves both
        net.train()
        optimiser.zero_grad(set_to_none=True)
        adv = torch.clamp(x + delta, 0, 1).requires_grad_()
        F.cross_entropy(net(adv), y).backward()
        delta.copy_(torch.clamp(delta + EPS * adv.grad.sign(), -EPS, EPS))
        optimiser.step()

    return free if method == 'freeat' else call
