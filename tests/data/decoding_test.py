"""Images are decoded as Pillow shows them, upright and on white, or refused."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from nfnets_tf.data.decoding import decode, pixel_count
from nfnets_tf.data.preprocessing import InceptionCrop
from nfnets_tf.data.tfrecords import Fields, Record
from nfnets_tf.data.validation import RecordValidator

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, [13, 11, 4], np.uint8)
RGB = Image.fromarray(PIXELS[..., :3])
RGBA = Image.fromarray(PIXELS)
GRAY = Image.fromarray(PIXELS[..., 0])
FEW = RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=17)
PALETTE = RANDOM.integers(0, 256, [256, 3])
ROWS, COLUMNS = np.mgrid[:48, :40]
# Smooth, as decoders of JPEGs differ where it is not.
SMOOTH = Image.fromarray(
  np.stack([ROWS * 5, COLUMNS * 6, ROWS + COLUMNS], -1).astype(np.uint8)
)


def encode(image, kind, **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def jpeg(image=SMOOTH, **options):
  return encode(image, "JPEG", quality=98, subsampling=0, **options)


def bmp(pixels, depth, *, colors=0, masks=(), size=40, top_down=False):
  """Returns a BMP of pixels [height, width] of `depth` bits."""
  height, width = pixels.shape
  row_bits = (width * depth + 31) // 32 * 32
  rows = []
  for row in pixels if top_down else pixels[::-1]:
    if depth < 8:
      bits = "".join(f"{value:0{depth}b}" for value in row)
      row = int(bits.ljust(row_bits, "0"), 2).to_bytes(row_bits // 8, "big")
    else:
      row = b"".join(int(x).to_bytes(depth // 8, "little") for x in row)
    rows.append(row.ljust(row_bits // 8, b"\0"))
  unused = b"" if size == 12 else b"\0"
  palette = b"".join(
    bytes(color[::-1].tolist()) + unused
    for color in PALETTE[: colors or 2**depth if depth <= 8 else 0]
  )
  if size == 12:
    header = struct.pack("<IHHHH", size, width, height, 1, depth)
  else:
    fields = size, width, -height if top_down else height, 1, depth
    compression = 3 if masks else 0
    header = struct.pack("<IiiHH6I", *fields, compression, 0, 0, 0, colors, 0)
    header += b"".join(mask.to_bytes(4, "little") for mask in masks)
    header = header.ljust(size, b"\0")
  begin = 14 + len(header) + len(palette)
  content = header + palette + b"".join(rows)
  return b"BM" + struct.pack("<IHHI", 14 + len(content), 0, 0, begin) + content


def numbers(bits):
  return RANDOM.integers(0, 2**bits, [13, 11])


def gif(canvas=(13, 11), corner=(0, 0), *, extra=b"", local=None, clear=None):
  """Returns a GIF of a frame of 13 x 11 pixels in eight colors."""
  # Codes of 4 bits: a clear code before every six pixels keeps them so short.
  codes = []
  for i, value in enumerate(numbers(3).ravel()):
    codes += [8, value] if i % 6 == 0 else [value]
  codes += [9] + [0] * (len(codes) % 2 == 0)
  data = bytes(a | b << 4 for a, b in zip(codes[::2], codes[1::2]))
  content = b"GIF89a" + struct.pack("<HH", canvas[1], canvas[0])
  content += b"\x82\0\0" + bytes(PALETTE[:8].ravel().tolist()) + extra
  if clear is not None:
    content += b"!\xf9\x04\x01\0\0" + bytes([clear]) + b"\0"
  content += b"," + struct.pack("<HHHH", corner[1], corner[0], 11, 13)
  content += b"\0" if local is None else b"\x82" + bytes(local.ravel().tolist())
  return content + b"\x03" + bytes([len(data)]) + data + b"\0;"


def marked(content, transform):
  """Replaces the transform that Adobe's segment of a JPEG states."""
  place = content.index(b"Adobe") + 11
  return content[:place] + bytes([transform]) + content[place + 1 :]


def without_adobe(content):
  begin = content.index(b"\xff\xee")
  return content[:begin] + content[begin + 16 :]


CMYK = jpeg(SMOOTH.convert("CMYK"))
SIXTEEN = RANDOM.integers(0, 2**16, [13, 11, 4]).astype(np.uint16)
ALPHA = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
EXTENSIONS = b"!\xfe\x03a,!\x02b;\0!\xff\x0bNETSCAPE2.0\x03\1\0\0\0"
IMAGES = {
  "bmp of 24 bits": encode(RGB, "BMP"),
  "bmp of 24 bits, top-down": bmp(numbers(24), 24, top_down=True),
  "bmp of os/2": bmp(numbers(24), 24, size=12),
  "bmp of version 5": bmp(numbers(24), 24, size=124),
  "gray bmp": encode(GRAY, "BMP"),
  "black and white bmp": encode(GRAY.convert("1"), "BMP"),
  "bmp, palette of 9 colors": bmp(numbers(3), 8, colors=9),
  "bmp of 4 bits, 9 colors": bmp(numbers(3), 4, colors=9, top_down=True),
  "bmp of 16 bits": bmp(numbers(15), 16),
  "bmp of 5, 6, 5 bits": bmp(numbers(16), 16, masks=(0xF800, 0x7E0, 0x1F)),
  "bmp of 32 bits": bmp(numbers(32), 32),
  "bmp with masks": bmp(numbers(32), 32, masks=ALPHA[:3]),
  "bmp with alpha": bmp(numbers(32), 32, masks=ALPHA, size=108),
  "png": encode(RGB, "PNG"),
  "png with alpha": encode(RGBA, "PNG"),
  "gray png with alpha": encode(RGBA.convert("LA"), "PNG"),
  "png of 16 bits": tf.io.encode_png(SIXTEEN[..., :3]).numpy(),
  "png of 16 bits with alpha": tf.io.encode_png(SIXTEEN).numpy(),
  "palette png": encode(FEW, "PNG"),
  "palette png of 2 bits": encode(FEW.quantize(4), "PNG", bits=2),
  "palette png, one clear": encode(FEW, "PNG", transparency=3),
  "palette png, some clear": encode(
    FEW, "PNG", transparency=bytes(range(0, 170, 10))
  ),
  "gray png, one clear": encode(
    GRAY.point(lambda x: x // 64), "PNG", transparency=2
  ),
  "png, one clear": encode(
    RGB, "PNG", transparency=tuple(PIXELS[2, 3, :3].tolist())
  ),
  "black and white png": encode(GRAY.convert("1"), "PNG"),
  "jpeg": jpeg(),
  "progressive jpeg": jpeg(progressive=True),
  "gray jpeg": jpeg(SMOOTH.convert("L")),
  "rgb jpeg": jpeg(keep_rgb=True),
  "cmyk jpeg": CMYK,
  "cmyk jpeg without adobe's mark": without_adobe(CMYK),
  "ycck jpeg": marked(CMYK, 2),
  "two jpegs": jpeg() + jpeg(SMOOTH.convert("L")),
  "gif": encode(FEW, "GIF"),
  "interlaced gif": encode(FEW, "GIF", interlace=1),
  "gif, one clear": encode(FEW, "GIF", transparency=3),
  "gif with a local palette": gif(local=PALETTE[8:16], extra=EXTENSIONS),
  "gif with a local palette, one clear": gif(local=PALETTE[8:16], clear=5),
  "gif, one clear, in a canvas": gif((20, 30), (3, 4), clear=5),
}
IMAGES |= {
  f"bmp of {depth} bits, {size}": bmp(numbers(depth), depth, size=size)
  for depth in (1, 4, 8)
  for size in (12, 40)
}
TOLERANCES = {"jpeg": 6, "bmp": 1}  # of bmp: 16 bits


def shown_by_pillow(content):
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
  if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return np.asarray(image.convert("RGB")).astype(int)


def decoded(content):
  return decode(tf.constant(content)).numpy().astype(int)


@pytest.mark.parametrize("name", IMAGES)
def test_decodes_what_pillow_shows(name):
  content = IMAGES[name]
  expected, image = shown_by_pillow(content), decoded(content)
  tolerance = next((t for x, t in TOLERANCES.items() if x in name), 1)
  np.testing.assert_allclose(image, expected, rtol=0, atol=tolerance)
  assert pixel_count(tf.constant(content)) == image[..., 0].size


def with_orientation(kind, number, byte_order="<"):
  image = SMOOTH if kind == "JPEG" else RGB
  exif = Image.Exif()
  exif.endian = byte_order
  exif[0x010F], exif[0x0112] = "maker", number
  options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
  return encode(image, kind, exif=exif, **options)


@pytest.mark.parametrize("number", range(10))
def test_applies_the_exif_orientation(number):
  contents = [
    with_orientation(kind, number, byte_order)
    for kind in ("JPEG", "PNG")
    for byte_order in "<>"
  ]
  assert b"MM\0*" in contents[1] and b"II*\0" in contents[0]
  for content in contents:
    np.testing.assert_allclose(
      decoded(content), shown_by_pillow(content), rtol=0, atol=6
    )


@pytest.mark.parametrize("byte_order", "<>")
def test_orientation_may_be_a_long_number(byte_order):
  content = with_orientation("JPEG", 6, byte_order)
  short = struct.pack(f"{byte_order}HHIHH", 0x0112, 3, 1, 6, 0)
  long = struct.pack(f"{byte_order}HHII", 0x0112, 4, 1, 6)
  assert content.count(short) == 1
  changed = content.replace(short, long)
  np.testing.assert_array_equal(decoded(changed), decoded(content))
  assert decoded(changed).shape == shown_by_pillow(content).shape


def segment(marker, content):
  return (
    b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content
  )


def split_exif(content):
  """Returns a JPEG's EXIF segment, and the JPEG without it."""
  begin = content.index(b"\xff\xe1")
  end = begin + 2 + int.from_bytes(content[begin + 2 : begin + 4], "big")
  return content[begin:end], content[:begin] + content[end:]


def test_finds_exif_behind_other_segments():
  exif, plain = split_exif(with_orientation("JPEG", 6))
  tables = plain.index(b"\xff\xdb")
  scan = plain.index(b"\xff\xda")
  xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
  turned = np.rot90(decoded(plain), -1)
  for content in (
    plain[:2] + exif + plain[2:],
    plain[:2] + xmp + exif + plain[2:],
    plain[:tables] + segment(0xFE, b"a comment") + exif + plain[tables:],
    plain[:tables] + segment(0xED, bytes(65_000)) + exif + plain[tables:],
    plain[:tables] + b"\xff\xff" + exif + plain[tables:],
    plain[:scan] + exif + plain[scan:],
  ):
    np.testing.assert_array_equal(decoded(content), turned)


def test_ignores_the_exif_of_another_image():
  turned = with_orientation("JPEG", 6)
  comment = segment(0xFE, b"\xff\xe1 \x10" + turned)
  plain = jpeg()
  for content in (plain + turned, plain[:2] + comment + plain[2:]):
    np.testing.assert_array_equal(decoded(content), decoded(plain))


def test_damaged_exif_leaves_the_image_as_it_is_stored_or_turned():
  exif, plain = split_exif(with_orientation("JPEG", 6, ">"))
  stored = decoded(plain)
  results = set()
  for i in range(200):
    damaged = bytearray(exif)
    for place in RANDOM.integers(10, len(exif), 1 + i % 3):
      damaged[place] = RANDOM.choice([0, 1, 0x7F, 0xFF])
    image = decoded(plain[:2] + bytes(damaged) + plain[2:])
    results.add(image.shape)
    assert sorted(image.shape) == sorted(stored.shape)
    assert image.sum() == stored.sum()
  assert len(results) == 2


def hostile_exif():
  entry = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16)
  yield struct.pack(">2sHI", b"MM", 42, 0xFFFFFFFF) + entry
  yield struct.pack(">2sHI", b"MM", 42, 0x80000000) + entry
  yield struct.pack(">2sHIH", b"MM", 42, 8, 0xFFFF)
  yield struct.pack(">2sHIH", b"MM", 42, 8, 0) + entry[:5]
  yield struct.pack(">2sHIH", b"MM", 43, 8, 1) + entry
  yield struct.pack(">2sHIH", b"MM", 42, 8, 1) + entry.replace(
    struct.pack(">I", 1), struct.pack(">I", 0xFFFFFFFF)
  )
  yield b""
  yield b"II*"


@pytest.mark.parametrize("tiff", hostile_exif())
def test_reads_nothing_beyond_exif(tiff):
  plain = jpeg()
  content = plain[:2] + segment(0xE1, b"Exif\0\0" + tiff) + plain[2:]
  np.testing.assert_array_equal(decoded(content), decoded(plain))


def test_a_search_through_empty_segments_ends():
  exif, plain = split_exif(with_orientation("JPEG", 6))
  content = plain[:2] + b"\xff\xe0\0\x02" * 9_000 + exif + plain[2:]
  assert decoded(content).shape == (48, 40, 3)


@pytest.mark.parametrize("number", range(1, 9))
def test_crops_the_box_of_a_turned_image(number):
  content = tf.constant(with_orientation("JPEG", number))
  crop = InceptionCrop(image_size=16)
  upright = decode(content)
  for i in range(4):
    seed = tf.constant([0, i], tf.int64)
    np.testing.assert_array_equal(crop(content, seed), crop(upright, seed))


def test_gray_levels_of_16_bits_become_8():
  # Not Pillow's, which clips them.
  content = tf.io.encode_png(SIXTEEN[..., :1]).numpy()
  assert (decoded(content) == SIXTEEN[..., :1] >> 8).all()


def test_transparent_pixels_round_to_the_nearest_value():
  alpha, value = np.mgrid[:256, :256].astype(np.uint8)
  image = np.stack([value, value, value, alpha], -1)
  expected = (value / 255 * (alpha / 255) + 1 - alpha / 255) * 255
  content = tf.io.encode_png(image).numpy()
  assert np.abs(decoded(content)[..., 0] - expected).max() <= 0.5 + 1e-9


def test_what_a_gif_does_not_cover_is_white():
  image = decoded(gif((20, 30), (3, 4)))
  assert image.shape == (20, 30, 3)
  image[3:16, 4:15] = 255
  assert (image == 255).all()


def test_alpha_of_zero_everywhere_means_none():
  opaque = numbers(24)
  image = decoded(bmp(opaque, 32, masks=ALPHA, size=108))
  np.testing.assert_array_equal(image, decoded(bmp(opaque, 24)))


def rle(content):
  return content[:30] + b"\1" + content[31:]


decode_in_graph = tf.function(
  decode, input_signature=[tf.TensorSpec([], tf.string)]
)

REFUSED = {
  "an RLE-compressed BMP": rle(bmp(numbers(8), 8)),
  "a BMP of an unusual kind": bmp(numbers(8), 8).replace(
    b"\1\0\x08\0", b"\1\0\x07\0", 1
  ),
  "a BMP that ends before its last pixel": encode(RGB, "BMP")[:-9],
  "a WebP image": encode(RGB, "WEBP"),
  "a TIFF image": encode(RGB, "TIFF"),
  "a JPEG 2000 image": encode(RGB, "JPEG2000"),
  "an AVIF image": b"\0\0\0\x1cftypavif\0\0\0\0",
  "a HEIC image": b"\0\0\0\x18ftypheic\0\0\0\0",
  "a JPEG XL image": b"\xff\x0a\xfa\x7f",
  "a PNM image": encode(RGB, "PPM"),
  "an empty file": b"",
  "a file of zeros": bytes(100),
  "an HTML page": b"\n<!DOCTYPE html><html><title>404</title></html>",
  "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
  "no JPEG, PNG, GIF or BMP": b"text",
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_what_it_refuses(name):
  validate = RecordValidator(Fields(), num_classes=1)
  invalid = validate(Record(REFUSED[name], 0, "", "a.jpg", "").serialize())
  assert invalid.cause == "image not decodable" and name in invalid.detail
  with pytest.raises(tf.errors.InvalidArgumentError, match=name):
    decode_in_graph(tf.constant(REFUSED[name]))
