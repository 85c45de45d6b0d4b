let current = null; // the address of the picture that is shown, and its file

function showStrength() {
  const share = find("strength").value / 100;
  find("percent").textContent = find("strength").value + " %";
  // The result lies over the input, so its opacity is the share of it that is seen.
  document.querySelector(".compare .after").style.opacity = share;
  if (current) find("download").href = current + "/download?strength=" + share;
}

async function watch(working) {
  while (working.now) {
    const { done, total } = await (await fetch("progress")).json();
    if (total) [find("progress").value, find("progress").max] = [done, total];
    else find("progress").removeAttribute("value");
    find("state").textContent = total ? `tile ${done} of ${total}` : "starting (the first time a program is compiled)";
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

async function restore(file) {
  find("error").hidden = true;
  find("working").hidden = false;
  const working = { now: true };
  const watching = watch(working);
  try {
    const query = new URLSearchParams({ name: file.name, tile: find("tile").value });
    const answer = await fetch("restore?" + query, { method: "POST", body: file, headers: { "X-Restore": "1" } });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    current = told.address;
    const [before, after] = document.querySelectorAll(".compare img");
    [before.src, after.src] = [current + "/before", current + "/after"];
    await Promise.all([before.decode(), after.decode()]);
    find("facts").textContent = told.facts;
    find("download").download = told.download;
    find("result").hidden = false;
    showStrength();
  } catch (error) {
    find("error").textContent = error.message;
    find("error").hidden = false;
  } finally {
    working.now = false;
    await watching;
    find("working").hidden = true;
  }
}

find("strength").addEventListener("input", showStrength);
