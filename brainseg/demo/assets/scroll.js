() => {
  const all = [...document.querySelectorAll("#result, #notes")];
  const shown = all.find((element) => element.offsetParent);
  if (shown && shown.getBoundingClientRect().top > innerHeight / 2)
    shown.scrollIntoView({behavior: "smooth", block: "start"});
}
