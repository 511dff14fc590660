"""Pictures of surroundings: one room, and writers of both formats."""

from __future__ import annotations

import numpy as np
import OpenEXR

from neuropbr_dist.materials.environment import directions


def write_hdr(path, light, *, runs: bool):
    """Radiance: light (H, W, 3) float; `runs`: run-length encoded, as most are."""
    largest = light.max(-1)
    mantissa, exponent = np.frexp(largest)
    scale = np.where(largest > 1e-32, mantissa * 256 / np.maximum(largest, 1e-38), 0)
    rgbe = np.concatenate(
        [light * scale[..., None], np.where(largest > 1e-32, exponent + 128, 0)[..., None]], -1
    )
    rgbe = rgbe.astype(np.uint8)
    height, width = light.shape[:2]
    body = b""
    for row in rgbe:
        if not runs:
            body += row.tobytes()
            continue
        body += bytes([2, 2, width >> 8, width & 255])
        for channel in row.T:
            x = 0
            while x < width:
                same = 1
                while x + same < width and same < 127 and channel[x + same] == channel[x]:
                    same += 1
                if same > 2:
                    body += bytes([128 + same, channel[x]])
                else:
                    same = min(2, width - x)
                    body += bytes([same, *channel[x : x + same]])
                x += same
    path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + body)


def write_exr(path, light):
    channels = {name: np.ascontiguousarray(light[..., k], np.float32) for k, name in enumerate("RGB")}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


def room(height=64):
    """A dim room with a bright window at 45 degrees over +x, (H, W, 3); its floor is bright and never seen."""
    towards, _ = directions(height)
    light = np.full((height, 2 * height, 3), 0.2, np.float32)
    window = (towards[0] > 0.6) & (towards[2] > 0.6)
    light[window.numpy()] = [20.0, 16.0, 12.0]
    light[height // 2 :] = 50.0
    return light
