() => {
  const names = {
    slice: "Upload a slice", mask: "Upload its true mask", slices: "Upload all slices",
  };
  const rename = () => Object.entries(names).forEach(([id, name]) =>
    document.querySelectorAll(`#${id} button[aria-label^="Click to upload"]`).forEach((button) =>
      button.setAttribute("aria-label", name)));
  new MutationObserver(rename).observe(document.body, {childList: true, subtree: true});
  rename();
}
