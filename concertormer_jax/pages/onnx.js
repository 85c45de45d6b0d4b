// ONNX Runtime runs the network in WebAssembly. NETWORK says its file and address, its tensors' names, and its pictures' size.
const session = start();
session.catch(showError);

async function start() {
  if (location.protocol === "file:")
    throw new Error("From the disk a page cannot read the network beside it; serve this folder, as the README says.");
  if (!window.ort) throw new Error(`${NETWORK.runtime} is missing beside this page; the README says where it is from.`);
  return ort.InferenceSession.create(NETWORK.address, { executionProviders: ["wasm"] });
}

function showError(error) {
  find("error").textContent = error.message;
  find("error").hidden = false;
}

// Where the reflection of a picture of `length` pixels has its pixel `index`.
function reflected(index, length) {
  const place = index % Math.max(1, 2 * length - 2);
  return Math.min(place, 2 * length - 2 - place);
}

// RGBA bytes [height, width, 4] to float32 [1, H, W, 3] in [0, 1], reflected at the bottom and the right.
function toTensor({ data, width, height }) {
  const values = new Float32Array(NETWORK.height * NETWORK.width * 3);
  let at = 0;
  for (let y = 0; y < NETWORK.height; y++)
    for (let x = 0; x < NETWORK.width; x++) {
      const from = 4 * (reflected(y, height) * width + reflected(x, width));
      for (const channel of [0, 1, 2]) values[at++] = data[from + channel] / 255;
    }
  return new ort.Tensor("float32", values, [1, NETWORK.height, NETWORK.width, 3]);
}

// Float32 [1, H, W, 3] in [0, 1] to RGBA bytes [height, width, 4].
function toPixels(values, width, height) {
  const pixels = new ImageData(width, height);
  pixels.data.fill(255);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (const channel of [0, 1, 2])
        pixels.data[4 * (y * width + x) + channel] = 255 * values[3 * (y * NETWORK.width + x) + channel];
  return pixels;
}

async function addressOf(canvas) {
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" }));
}

async function restore(file) {
  find("error").hidden = true;
  find("working").hidden = false;
  try {
    const network = await session;
    const picture = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name}: is no picture that this browser reads.`);
    });
    const { width, height } = picture;
    if (width > NETWORK.width || height > NETWORK.height)
      throw new Error(
        `${file.name}: has ${width}x${height} pixels, and ${NETWORK.file} takes ${NETWORK.width}x${NETWORK.height} ` +
          "at most; export the network for a larger --size, or choose a smaller picture.",
      );
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const before = await addressOf(canvas);
    const given = toTensor(context.getImageData(0, 0, width, height));
    const started = performance.now();
    const results = await network.run({ [NETWORK.input]: given });
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    context.putImageData(toPixels(results[NETWORK.output].data, width, height), 0, 0);
    const after = await addressOf(canvas);
    const shown = document.querySelectorAll(".compare img");
    [shown[0].src, shown[1].src] = [before, after];
    await Promise.all([...shown].map((image) => image.decode()));
    find("facts").textContent = `${width}x${height} pixels in ${seconds} s`;
    find("download").href = after;
    find("download").download = file.name.replace(/\.[^.]*$/, "") + "_restored.png";
    find("result").hidden = false;
  } catch (error) {
    showError(error);
  } finally {
    find("working").hidden = true;
  }
}
