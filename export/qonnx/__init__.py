"""QONNX: files for the readers of FPGA tools, with `Quant`, `BipolarQuant` and `Trunc` nodes."""

__all__: list[str] = []
