"""Steering and norms of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..table import SteerTable
from .binding import CODE, NO_ROWS, _cpu, handle_of, rows_of


def steer_(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> None:
    handle = table._handle or handle_of(table)
    k, dim = directions.shape
    if x.is_contiguous():
        _cpu.steer_rows(
            CODE[x.dtype],
            x.data_ptr(),
            x.numel() // dim,
            dim,
            dim * x.element_size(),
            directions.data_ptr(),
            k,
            handle,
            0 if token_row is None else token_row.data_ptr(),
            scale,
        )
        return
    view = rows_of(x)
    if view is None:
        steered = x.contiguous()
        steer_(steered, directions, table, token_row, scale)
        x.copy_(steered)
        return
    token = 0 if token_row is None else token_row.data_ptr()
    _cpu.steer(
        CODE[x.dtype], view, view, x.numel() // dim, dim, directions.data_ptr(), k, handle, token, scale
    )


def steer(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    k, dim = directions.shape
    view = rows_of(x)
    if view is None:
        out.copy_(x)
        steer_(out, directions, table, token_row, scale)
        return out
    _cpu.steer(
        CODE[x.dtype],
        view,
        rows_of(out),
        x.numel() // dim,
        dim,
        directions.data_ptr(),
        k,
        table._handle or handle_of(table),
        0 if token_row is None else token_row.data_ptr(),
        scale,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    dim = x.shape[-1]
    if x.is_contiguous():
        _cpu.rms_norm_rows(
            CODE[x.dtype],
            x.data_ptr(),
            out.data_ptr(),
            x.numel() // dim,
            dim,
            dim * x.element_size(),
            weight.data_ptr(),
            CODE[weight.dtype],
            eps,
            weight_offset,
        )
        return out
    view = rows_of(x) or rows_of(x := x.contiguous())
    _cpu.rms_norm(
        CODE[x.dtype],
        view,
        rows_of(out),
        x.numel() // dim,
        dim,
        weight.data_ptr(),
        CODE[weight.dtype],
        eps,
        weight_offset,
    )
    return out


def steer_rms_norm_(
    x: Tensor,
    weight: Tensor,
    directions: Tensor,
    table: SteerTable,
    token_row: Tensor | None,
    scale: float,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
) -> Tensor:
    normed = torch.empty(x.shape, dtype=x.dtype)
    k, dim = directions.shape
    if residual is None and x.is_contiguous():
        _cpu.steer_rms_norm_rows(
            CODE[x.dtype],
            x.data_ptr(),
            normed.data_ptr(),
            x.numel() // dim,
            dim,
            dim * x.element_size(),
            weight.data_ptr(),
            CODE[weight.dtype],
            eps,
            weight_offset,
            directions.data_ptr(),
            k,
            table._handle or handle_of(table),
            0 if token_row is None else token_row.data_ptr(),
            scale,
        )
        return normed
    view = rows_of(x)
    if view is None:
        stream = x.contiguous()
        normed = steer_rms_norm_(
            stream, weight, directions, table, token_row, scale, residual, eps, weight_offset
        )
        x.copy_(stream)
        return normed
    other = NO_ROWS
    if residual is not None:
        other = rows_of(residual) or rows_of(residual := residual.contiguous())
    _cpu.steer_rms_norm(
        CODE[x.dtype],
        view,
        other,
        rows_of(normed),
        x.numel() // dim,
        dim,
        weight.data_ptr(),
        CODE[weight.dtype],
        eps,
        weight_offset,
        directions.data_ptr(),
        k,
        table._handle or handle_of(table),
        0 if token_row is None else token_row.data_ptr(),
        scale,
    )
    return normed
