"""CUDA without a GPU: tensors that say they are on CUDA and compute on the CPU. A test double at the hardware's edge.

The product runs unchanged, with real values. What would fail on a GPU fails here: operands on two devices, `.numpy()`
of a tensor on CUDA, an operator that has no CUDA kernel, collectives of tensors that are not contiguous. What would
make the host wait for the GPU is counted, with the line of the product that did it (`ledger.py`).

    tensor.py      the tensor, and the methods of a tensor that torch does not pass on to operators
    operators.py   computes an operator on the CPU's memory of its operands, after checking their devices
    hardware.py    doubles of torch.cuda: streams, events, memory, properties, the CUDA runtime
    ledger.py      what was counted
    install.py     puts all of it into torch, for the rest of the process
    workers.py     starts real ranks under it, and reads what they counted
    __main__.py    runs a script or a module under it: python -m tests.fake_cuda scripts/NAME ARGUMENTS

It cannot show speed, overlap of streams, races, NCCL itself, the memory that CUDA takes, and how CUDA's kernels round.
A device needs its number, as in `x.to("cuda:0")`, and there are no gradients.
"""
