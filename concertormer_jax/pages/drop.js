// A photograph that is chosen, or dropped, is given to the page's own `restore`.
const find = (id) => document.getElementById(id);
find("file").addEventListener("change", (event) => event.target.files[0] && restore(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"])
  find("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) restore(event.dataTransfer.files[0]);
  });
