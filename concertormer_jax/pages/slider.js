// The slider of every comparison, there now or added later, moves the edge between its two pictures.
document.addEventListener("input", (event) => {
  if (event.target.matches(".compare input[type=range]"))
    event.target.parentElement.style.setProperty("--at", event.target.value + "%");
});
// "Show the target" puts the target in the place of the input, and back.
document.addEventListener("change", (event) => {
  if (!event.target.matches("input.show-target")) return;
  const compare = event.target.closest("figure").querySelector(".compare");
  const before = compare.querySelector(".before");
  [before.src, before.dataset.other] = [before.dataset.other, before.src];
  compare.querySelector(".name.left").textContent = event.target.checked ? "target" : "input";
});
